/* Stands before the C library (LD_PRELOAD) and fails, or kills at, the n-th write, fsync or rename
 * below a folder; faults.py arms it. Of a write that fails or kills, half the bytes arrive.
 * Link: cc -shared -fPIC -O1 -o faults.so faults.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, FSYNC, RENAME, KINDS };

static char below[PATH_MAX];
static int which = -1, error, stays, log_file = -1;
static long number, counts[KINDS];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Count operations of all kinds below `folder`, and let the n-th of `kind` fail with `failure`, or
 * kill where that is 0; `forever` lets all later ones fail too. `told` is a file descriptor for one
 * line an operation, or -1. */
void fault_arm(const char *folder, int kind, long n, int failure, int forever, int told) {
    snprintf(below, sizeof below, "%s/", folder);
    which = kind, number = n, error = failure, stays = forever, log_file = told;
    memset(counts, 0, sizeof counts);
}

long fault_count(int kind) { return counts[kind]; }

static void tell(const char *what, const char *path, const char *other) {
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", what, path, other ? other : "");
    if (log_file >= 0 && REAL(write)(log_file, line, length) < 0) log_file = -1;
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static int due(int kind, const char *path, const char *other) {
    static const char *names[] = {"write", "fsync", "rename"};
    if (!*below || strncmp(path, below, strlen(below))) return 0;
    long now = __sync_add_and_fetch(&counts[kind], 1);
    tell(names[kind], path, other);
    return kind == which && (now == number || (stays && now > number));
}

static int fail(void) {
    if (!error) kill(getpid(), SIGKILL);
    errno = error;
    return -1;
}

ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!*below || !due(WRITE, path_of(fd, path), 0)) return REAL(write)(fd, data, size);
    if (error != EINTR && REAL(write)(fd, data, size / 2) < 0) return -1;
    return fail();
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    return *below && due(WRITE, path_of(fd, path), 0) ? fail() : REAL(writev)(fd, parts, count);
}

ssize_t sendfile(int to, int from, off_t *start, size_t size) {
    char path[PATH_MAX];
    if (*below && due(WRITE, path_of(to, path), 0)) return fail();
    return ((ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(to, from, start, size);
}

int fsync(int fd) {
    char path[PATH_MAX];
    return *below && due(FSYNC, path_of(fd, path), 0) ? fail() : REAL(fsync)(fd);
}

int rename(const char *from, const char *to) {
    return *below && due(RENAME, from, to) ? fail() : REAL(rename)(from, to);
}
