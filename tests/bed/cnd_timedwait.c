/* libfaketime knows POSIX's timed wait and not C11's, which librdkafka uses: a wait for a tenth of a second by a clock that is
 * an hour ahead would last an hour. In glibc both are the same, and so this is the way to libfaketime's. For tests only. */
#include <errno.h>
#include <pthread.h>
#include <threads.h>
#include <time.h>

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until)
{
  switch (pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until)) {
  case 0: return thrd_success;
  case ETIMEDOUT: return thrd_timedout;
  default: return thrd_error;
  }
}
