/* Makes the wall clock of a process jump when told, for tests of what relies on it. Loaded with LD_PRELOAD.
 *
 * CLOCK_SHIFT is a file of eight bytes: seconds to add, signed, in the machine's order. It is mapped, so that a change
 * counts at once. The monotonic clock stays as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int64_t none;
static volatile int64_t *shift = &none;

__attribute__((constructor)) static void begin(void) {
    const char *place = getenv("CLOCK_SHIFT");
    int fd = place ? open(place, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) shift = mapped;
    close(fd);
}

int gettimeofday(struct timeval *now, void *zone) {
    int done = REAL(gettimeofday)(now, zone);
    now->tv_sec += *shift;
    return done;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += *shift;
    return done;
}

time_t time(time_t *place) {
    time_t now = REAL(time)(NULL) + *shift;
    if (place) *place = now;
    return now;
}
