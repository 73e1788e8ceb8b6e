/* A disk that takes half a second for each flush, while the file that SLOW_FSYNC names is there: preloaded into PostgreSQL. For
 * tests only. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_for_the_disk(void)
{
  const char *file = getenv("SLOW_FSYNC");
  if (file && access(file, F_OK) == 0)
    usleep(500000);
}

int fsync(int fd)
{
  wait_for_the_disk();
  return syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
  wait_for_the_disk();
  return syscall(SYS_fdatasync, fd);
}
