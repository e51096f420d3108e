/* LD_PRELOAD, for tools/faults.py: a sick disk and a wall clock that steps.
 * While the file $FAULTS_STALL exists fsync and fdatasync hang; while $FAULTS_READ_ONLY exists files refuse data.
 * The file $FAULTS_CLOCK holds three words: the seconds by which wall time is off, by how many millionths it runs too
 * fast, and since when, in true nanoseconds. Monotonic clocks and sleeps stay true. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int ordered(const char *name) {
    const char *flag = getenv(name);
    return flag && access(flag, F_OK) == 0;
}

static int stalled(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    while (ordered("FAULTS_STALL"))
        usleep(5000);
    return real(fd);
}

static ssize_t refused(const char *name, int fd, const void *data, size_t size, off_t at) {
    typedef ssize_t (*writer)(int, const void *, size_t, off_t);
    writer real = (writer)dlsym(RTLD_NEXT, name);
    if (ordered("FAULTS_READ_ONLY")) {
        errno = EROFS;
        return -1;
    }
    return real(fd, data, size, at);
}

int fsync(int fd) { return stalled("fsync", fd); }
int fdatasync(int fd) { return stalled("fdatasync", fd); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return refused("pwrite", fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return refused("pwrite64", fd, data, size, at); }

static int64_t clock_off_ns(const struct timespec *now) {
    static volatile int64_t *words;
    static int tried;
    if (!tried) {
        tried = 1;
        const char *path = getenv("FAULTS_CLOCK");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, 24, PROT_READ, MAP_SHARED, fd, 0);
        if (fd >= 0)
            close(fd);
        words = mapped == MAP_FAILED ? NULL : mapped;
    }
    if (!words)
        return 0;
    int64_t since_ns = words[2], gone_ns = now->tv_sec * 1000000000 + now->tv_nsec - since_ns;
    return words[0] * 1000000000 + (since_ns ? gone_ns / 1000000 * words[1] : 0);
}

static void falsify(struct timespec *now) {
    int64_t ns = now->tv_sec * 1000000000 + now->tv_nsec + clock_off_ns(now);
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME)
        falsify(now);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    (void)zone;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
