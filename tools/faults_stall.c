/* LD_PRELOAD: fsync and fdatasync hang while the file $FAULTS_STALL exists, as they do on a sick disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int stalled(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *flag = getenv("FAULTS_STALL");
    while (flag && access(flag, F_OK) == 0)
        usleep(5000);
    return real(fd);
}

int fsync(int fd) { return stalled("fsync", fd); }
int fdatasync(int fd) { return stalled("fdatasync", fd); }
