/* The disk of one directory, as a process sees it, watched and broken on demand. Loaded with LD_PRELOAD.

   DISK_BELOW    the directory; everything else passes untouched
   DISK_LOG      every call that changes something below it, in the order in which it happened: see `record.py`
   DISK_FAULTS   a file of words `call=errno` or `call=msNUMBER` (write, sync, open, unlink, rename); it is read before
                 each call, so it can be changed from outside at any time; a missing or empty one breaks nothing

   A write that meets ENOSPC is first cut in half, as a real disk does it. One mutex makes the order of the log the order
   of the calls. The shared memory of SQLite (`-shm`) is worth nothing after a power cut and is left out. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, SYNC, UNLINK, RENAME, MKDIR, MARK, SYNC_FAILED };

struct head {
    uint32_t kind, fd; /* OPEN: fd of what is now open; `offset` 1 when the file was made by this */
    uint64_t offset;
    uint32_t path, data; /* lengths of what follows */
};

#define MAX_FD 4096
static char below[PATH_MAX];
static const char *faults;
static int log_fd = -1;
static unsigned char watched[MAX_FD]; /* 1: a file below, 2: a directory below (or `below` itself) */
static unsigned char appends[MAX_FD];
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fallocate)(int, off_t, off_t);
static int (*real_unlink)(const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_rename)(const char *, const char *);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_rmdir)(const char *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

static void resolve(void) {
    if (real_open)
        return;
    *(void **)&real_openat = dlsym(RTLD_NEXT, "openat");
    *(void **)&real_close = dlsym(RTLD_NEXT, "close");
    *(void **)&real_write = dlsym(RTLD_NEXT, "write");
    *(void **)&real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    *(void **)&real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    *(void **)&real_fallocate = dlsym(RTLD_NEXT, "posix_fallocate64");
    *(void **)&real_unlink = dlsym(RTLD_NEXT, "unlink");
    *(void **)&real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
    *(void **)&real_rename = dlsym(RTLD_NEXT, "rename");
    *(void **)&real_renameat = dlsym(RTLD_NEXT, "renameat");
    *(void **)&real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    *(void **)&real_rmdir = dlsym(RTLD_NEXT, "rmdir");
    *(void **)&real_fsync = dlsym(RTLD_NEXT, "fsync");
    *(void **)&real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    *(void **)&real_open = dlsym(RTLD_NEXT, "open");
}

__attribute__((constructor)) static void begin(void) {
    resolve();
    const char *log = getenv("DISK_LOG"), *where = getenv("DISK_BELOW");
    faults = getenv("DISK_FAULTS");
    if (where && strlen(where) < sizeof below)
        strcpy(below, where);
    if (log) {
        int fd = real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 900); /* out of the way of the numbers that programs expect */
        real_close(fd);
    }
}

/* ── what is ours ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The path below the directory, "" for the directory itself, NULL for what is elsewhere or worth nothing. */
static const char *inside(const char *path) {
    size_t n = strlen(below);
    if (!n || !path || strncmp(path, below, n) || (path[n] && path[n] != '/'))
        return NULL;
    path += n;
    while (*path == '/')
        path++;
    size_t m = strlen(path);
    return m >= 4 && !strcmp(path + m - 4, "-shm") ? NULL : path;
}

static int ours(int fd) { return fd >= 0 && fd < MAX_FD ? watched[fd] : 0; }

static void note(uint32_t kind, int fd, uint64_t offset, const char *path, const void *data, size_t length) {
    if (log_fd < 0)
        return;
    struct head head = {kind, fd, offset, path ? strlen(path) : 0, length};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, length}};
    if (writev(log_fd, parts, 3) != (ssize_t)(sizeof head + head.path + length))
        abort(); /* a log with a hole proves nothing */
}

/* What shall happen to this call: 0, or an errno. Sleeps where it shall hang. */
static int fault(const char *call) {
    char text[512], *found;
    if (!faults)
        return 0;
    int fd = real_open(faults, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    real_close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    size_t length = strlen(call);
    for (found = strtok(text, " \n"); found; found = strtok(NULL, " \n"))
        if (!strncmp(found, call, length) && found[length] == '=') {
            const char *what = found + length + 1;
            if (!strncmp(what, "ms", 2)) {
                long ms = atol(what + 2);
                struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
                nanosleep(&pause, NULL);
                return 0;
            }
            return atoi(what);
        }
    return 0;
}

#define LOCK pthread_mutex_lock(&mutex)
#define UNLOCK(result)                                                                                                 \
    do {                                                                                                               \
        int saved = errno;                                                                                             \
        pthread_mutex_unlock(&mutex);                                                                                  \
        errno = saved;                                                                                                 \
        return result;                                                                                                 \
    } while (0)
#define FAIL_ON(call)                                                                                                  \
    do {                                                                                                               \
        int broken = fault(call);                                                                                      \
        if (broken) {                                                                                                  \
            errno = broken;                                                                                            \
            UNLOCK(-1);                                                                                                \
        }                                                                                                              \
    } while (0)

/* For the program itself: puts a promise into the order of what it wrote. */
void disk_mark(const char *text, size_t length) {
    LOCK;
    note(MARK, 0, 0, NULL, text, length);
    pthread_mutex_unlock(&mutex);
}

/* ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────── */

static int opened(const char *path, int flags, mode_t mode) {
    const char *name = inside(path);
    if (!name)
        return real_open(path, flags, mode);
    LOCK;
    struct stat before;
    int is_new = stat(path, &before) != 0;
    if (flags & (O_WRONLY | O_RDWR) || is_new)
        FAIL_ON("open");
    int fd = real_open(path, flags, mode);
    if (fd >= 0 && fd < MAX_FD) {
        struct stat now;
        fstat(fd, &now);
        watched[fd] = S_ISDIR(now.st_mode) ? 2 : 1;
        appends[fd] = (flags & O_APPEND) != 0;
        note(OPEN, fd, is_new, name, NULL, 0);
        if (!is_new && flags & O_TRUNC)
            note(TRUNCATE, fd, 0, NULL, NULL, 0);
    }
    UNLOCK(fd);
}

#define OPEN_BODY(call)                                                                                                \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }                                                                                                                  \
    resolve();                                                                                                         \
    return call;

int open(const char *path, int flags, ...) { OPEN_BODY(opened(path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPEN_BODY(opened(path, flags | O_LARGEFILE, mode)) }
int openat(int at, const char *path, int flags, ...) {
    OPEN_BODY(inside(path) ? opened(path, flags, mode) : real_openat(at, path, flags, mode))
}
int openat64(int at, const char *path, int flags, ...) {
    OPEN_BODY(inside(path) ? opened(path, flags, mode) : real_openat(at, path, flags | O_LARGEFILE, mode))
}
int creat(const char *path, mode_t mode) { return opened(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    resolve();
    if (!ours(fd))
        return real_close(fd);
    LOCK;
    watched[fd] = 0;
    int result = real_close(fd);
    UNLOCK(result);
}

static ssize_t written(int fd, const void *data, size_t length, off_t offset, int at_offset) {
    LOCK;
    int broken = fault("write");
    if (broken && !(broken == ENOSPC && length > 512)) {
        errno = broken;
        UNLOCK(-1);
    }
    if (broken)
        length /= 2;
    if (!at_offset)
        offset = lseek(fd, 0, appends[fd] ? SEEK_END : SEEK_CUR);
    ssize_t result = at_offset ? real_pwrite(fd, data, length, offset) : real_write(fd, data, length);
    if (result > 0)
        note(WRITE, fd, offset, NULL, data, result);
    UNLOCK(result);
}

ssize_t write(int fd, const void *data, size_t length) {
    resolve();
    return ours(fd) == 1 ? written(fd, data, length, 0, 0) : real_write(fd, data, length);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) {
    resolve();
    return ours(fd) == 1 ? written(fd, data, length, offset, 1) : real_pwrite(fd, data, length, offset);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return pwrite64(fd, data, length, offset); }

int ftruncate64(int fd, off_t length) {
    resolve();
    if (ours(fd) != 1)
        return real_ftruncate(fd, length);
    LOCK;
    FAIL_ON("write");
    int result = real_ftruncate(fd, length);
    if (!result)
        note(TRUNCATE, fd, length, NULL, NULL, 0);
    UNLOCK(result);
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int posix_fallocate64(int fd, off_t offset, off_t length) {
    resolve();
    if (ours(fd) == 1)
        abort(); /* nobody does this here; whoever begins to must teach the log about it */
    return real_fallocate(fd, offset, length);
}
int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }

static int synced(int fd, int (*sync)(int)) {
    LOCK;
    int broken = fault("sync");
    if (broken) {
        note(SYNC_FAILED, fd, 0, NULL, NULL, 0);
        errno = broken;
        UNLOCK(-1);
    }
    int result = sync(fd);
    note(result ? SYNC_FAILED : SYNC, fd, 0, NULL, NULL, 0);
    UNLOCK(result);
}

int fsync(int fd) {
    resolve();
    return ours(fd) ? synced(fd, real_fsync) : real_fsync(fd);
}
int fdatasync(int fd) {
    resolve();
    return ours(fd) ? synced(fd, real_fdatasync) : real_fdatasync(fd);
}

static int unlinked(const char *path, int folder) {
    const char *name = inside(path);
    int (*call)(const char *) = folder ? real_rmdir : real_unlink;
    if (!name)
        return call(path);
    LOCK;
    FAIL_ON("unlink");
    int result = call(path);
    if (!result)
        note(UNLINK, 0, 0, name, NULL, 0);
    UNLOCK(result);
}

int unlink(const char *path) {
    resolve();
    return unlinked(path, 0);
}
int rmdir(const char *path) {
    resolve();
    return unlinked(path, 1);
}
int unlinkat(int at, const char *path, int flags) {
    resolve();
    return inside(path) ? unlinked(path, flags & AT_REMOVEDIR) : real_unlinkat(at, path, flags);
}

static int renamed(const char *from, const char *to) {
    const char *old = inside(from), *new = inside(to);
    if (!old || !new)
        return real_rename(from, to);
    LOCK;
    FAIL_ON("rename");
    int result = real_rename(from, to);
    if (!result)
        note(RENAME, 0, 0, old, new, strlen(new));
    UNLOCK(result);
}

int rename(const char *from, const char *to) {
    resolve();
    return renamed(from, to);
}
int renameat(int at, const char *from, int to_at, const char *to) {
    resolve();
    return inside(from) ? renamed(from, to) : real_renameat(at, from, to_at, to);
}

int mkdir(const char *path, mode_t mode) {
    resolve();
    const char *name = inside(path);
    if (!name)
        return real_mkdir(path, mode);
    LOCK;
    FAIL_ON("open");
    int result = real_mkdir(path, mode);
    if (!result)
        note(MKDIR, 0, 0, name, NULL, 0);
    UNLOCK(result);
}
