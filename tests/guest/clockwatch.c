/* What a fork's pause looks like from inside the guest.
 *
 *   clockwatch serve    watches the clocks in a busy loop, in the background
 *   clockwatch read     prints, in microseconds, the largest gap between two looks at the monotonic
 *                       clock since the last `read`, the sum of all gaps above 1 ms, the largest
 *                       step of the wall clock against the monotonic one, and backward steps:
 *                       "gap_us G stalled_us S step_us W backward N", and begins anew
 *
 * The two share a file in /run (shared memory; atomics), so that reading does not stop the loop. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PATH "/run/clockwatch"
#define STALL_NS 1000000

struct figures {
  _Atomic int64_t gap_ns, stalled_ns, step_ns, backward;
};

static int64_t now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void keep_largest(_Atomic int64_t* figure, int64_t value) {
  if (value > atomic_load(figure)) atomic_store(figure, value);
}

static void watch(struct figures* figures) {
  int64_t last = now(CLOCK_MONOTONIC), offset = now(CLOCK_REALTIME) - last;
  for (;;) {
    int64_t time = now(CLOCK_MONOTONIC), wall = now(CLOCK_REALTIME);
    int64_t gap = time - last;
    if (gap < 0) atomic_fetch_add(&figures->backward, 1);
    keep_largest(&figures->gap_ns, gap);
    if (gap > STALL_NS) atomic_fetch_add(&figures->stalled_ns, gap);
    last = time;
    /* Only looks at both clocks that nothing came between can be compared. */
    if (now(CLOCK_MONOTONIC) - time > 100000) continue;
    int64_t step = wall - time - offset;
    keep_largest(&figures->step_ns, step < 0 ? -step : step);
    offset = wall - time;
  }
}

int main(int argc, char** argv) {
  int serving = argc == 2 && strcmp(argv[1], "serve") == 0;
  if (!serving && !(argc == 2 && strcmp(argv[1], "read") == 0)) {
    fprintf(stderr, "usage: clockwatch serve | read\n");
    return 2;
  }
  int fd = open(PATH, O_RDWR | (serving ? O_CREAT | O_TRUNC : 0), 0600);
  if (fd < 0 || (serving && ftruncate(fd, sizeof(struct figures)) != 0)) {
    perror("clockwatch: " PATH);
    return 2;
  }
  struct figures* figures = mmap(NULL, sizeof *figures, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (figures == MAP_FAILED) return 2;
  if (serving) {
    if (daemon(0, 0) != 0) return 2;
    watch(figures);
  }
  long long gap = atomic_exchange(&figures->gap_ns, 0) / 1000;
  long long stalled = atomic_exchange(&figures->stalled_ns, 0) / 1000;
  long long step = atomic_exchange(&figures->step_ns, 0) / 1000;
  long long backward = atomic_exchange(&figures->backward, 0);
  printf("gap_us %lld stalled_us %lld step_us %lld backward %lld\n", gap, stalled, step, backward);
  return 0;
}
