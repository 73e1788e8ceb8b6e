/* Preloaded into PostgreSQL by the bench: each flush takes SLOW_FLUSH_US microseconds longer, as on a network disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int slowly(const char *name, int fd) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  const char *more = getenv("SLOW_FLUSH_US");
  int result = real(fd);
  if (more) usleep((useconds_t)atol(more));
  return result;
}

int fsync(int fd) { return slowly("fsync", fd); }
int fdatasync(int fd) { return slowly("fdatasync", fd); }
