/* LD_PRELOAD, for tools/faults.py: a sick disk.
 * While the file $FAULTS_STALL exists fsync and fdatasync hang; while $FAULTS_READ_ONLY exists files refuse data (EROFS). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
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
    ssize_t (*real)(int, const void *, size_t, off_t) = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, name);
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
