/* Notes, in order, everything a process does to the files of one directory, so that a test can rebuild what a disk
 * would hold had the power failed at any moment. Loaded with LD_PRELOAD.
 *
 * POWER_WATCH is the directory (absolute, without a trailing slash), POWER_JOURNAL the file to note to. A record is:
 * kind (1 byte), offset (8), length of data (4), length of path (2), path, data; numbers are little endian. Kinds:
 * c created, w written, t truncated to offset, s forced, d directory forced, u unlinked, r renamed and l linked (both
 * with the new path as data). A call and its record happen under one lock, so the journal's order is the order of the
 * calls. Files written through stdio are not seen until they are forced; then they are noted whole.
 *
 * POWER_SLOW is a file: while it is there, each force takes as many milliseconds longer as it says.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FDS 1024
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *paths[FDS];
static int journal = -1;
static const char *watch;

static void take_lock(void) { pthread_mutex_lock(&lock); }
static void give_lock(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void begin(void) {
    pthread_atfork(take_lock, give_lock, give_lock);
    /* A copy: redis-server writes its title over the environment it was given. */
    watch = getenv("POWER_WATCH") ? strdup(getenv("POWER_WATCH")) : NULL;
    const char *place = getenv("POWER_JOURNAL");
    if (watch && place) journal = REAL(open)(place, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int watched(const char *path) {
    size_t length = watch && path ? strlen(watch) : 0, end = path ? strlen(path) : 0;
    if (journal < 0 || !length || strncmp(path, watch, length)) return 0;
    if (path[length] != '/' && path[length] != 0) return 0;
    return end < 4 || strcmp(path + end - 4, "-shm"); /* shared memory is never forced and never trusted */
}

/* The absolute form of a path, in one of two buffers (a rename has two paths); called under the lock. */
static const char *absolute(const char *path) {
    static char buffers[2][2 * PATH_MAX];
    static int turn;
    if (!path || *path == '/') return path;
    char *place = buffers[turn = !turn];
    if (!getcwd(place, PATH_MAX)) return path;
    size_t length = strlen(place);
    snprintf(place + length, PATH_MAX, "/%s", path);
    return place;
}

static void note(char kind, const char *path, uint64_t offset, const void *data, uint32_t length) {
    uint16_t name = (uint16_t)strlen(path);
    size_t size = 15 + name + length;
    char *record = malloc(size);
    record[0] = kind;
    memcpy(record + 1, &offset, 8);
    memcpy(record + 9, &length, 4);
    memcpy(record + 13, &name, 2);
    memcpy(record + 15, path, name);
    if (length) memcpy(record + 15 + name, data, length);
    if (REAL(write)(journal, record, size) != (ssize_t)size) abort();
    free(record);
}

static const char *path_of(int fd) { return fd >= 0 && fd < FDS ? paths[fd] : NULL; }

static int opened(int fd, const char *path, int existed) {
    if (fd >= 0 && fd < FDS && watched(path)) {
        free(paths[fd]);
        paths[fd] = strdup(path);
        if (!existed) note('c', path, 0, NULL, 0);
    }
    return fd;
}

static int do_open(__typeof__(&open) real, const char *path, int flags, mode_t mode) {
    struct stat found;
    pthread_mutex_lock(&lock);
    path = absolute(path);
    int existed = stat(path, &found) == 0;
    int fd = opened(real(path, flags, mode), path, existed);
    if (fd >= 0 && existed && (flags & O_TRUNC) && watched(path)) note('t', path, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name)                                        \
    int name(const char *path, int flags, ...) {          \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                     \
        return do_open(REAL(name), path, flags, mode);    \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (path_of(fd)) {
        free(paths[fd]);
        paths[fd] = NULL;
    }
    int done = REAL(close)(fd);
    pthread_mutex_unlock(&lock);
    return done;
}

#define PWRITE(name, type)                                                      \
    ssize_t name(int fd, const void *data, size_t length, type offset) {        \
        pthread_mutex_lock(&lock);                                              \
        ssize_t done = REAL(name)(fd, data, length, offset);                    \
        if (done > 0 && path_of(fd)) note('w', path_of(fd), (uint64_t)offset, data, (uint32_t)done); \
        pthread_mutex_unlock(&lock);                                            \
        return done;                                                            \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t length) {
    pthread_mutex_lock(&lock);
    ssize_t done = REAL(write)(fd, data, length);
    if (done > 0 && path_of(fd)) {
        uint64_t end = (uint64_t)lseek(fd, 0, SEEK_CUR);
        note('w', path_of(fd), end - (uint64_t)done, data, (uint32_t)done);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

#define TRUNCATE(name, type)                                                \
    int name(int fd, type length) {                                         \
        pthread_mutex_lock(&lock);                                          \
        int done = REAL(name)(fd, length);                                  \
        if (!done && path_of(fd)) note('t', path_of(fd), (uint64_t)length, NULL, 0); \
        pthread_mutex_unlock(&lock);                                        \
        return done;                                                        \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

static void dally(void) {
    const char *place = getenv("POWER_SLOW");
    char text[16] = "";
    int fd = place ? REAL(open)(place, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    if (read(fd, text, sizeof text - 1) > 0) usleep((useconds_t)atoi(text) * 1000);
    REAL(close)(fd);
}

/* Notes a file that was forced but opened through stdio: created, written, forced. */
static void note_whole(int fd) {
    char link[64], path[PATH_MAX];
    struct stat found;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    int copy = watched(path) ? REAL(open)(path, O_RDONLY | O_CLOEXEC) : -1;
    if (copy < 0) return;
    if (!fstat(copy, &found) && S_ISREG(found.st_mode)) {
        char *data = malloc((size_t)found.st_size + 1);
        ssize_t got = pread(copy, data, (size_t)found.st_size, 0);
        note('c', path, 0, NULL, 0);
        if (got > 0) note('w', path, 0, data, (uint32_t)got);
        note('s', path, 0, NULL, 0);
        free(data);
    }
    REAL(close)(copy);
}

#define SYNC(name)                                                          \
    int name(int fd) {                                                      \
        struct stat kind;                                                   \
        dally();                                                            \
        pthread_mutex_lock(&lock);                                          \
        int done = REAL(name)(fd);                                          \
        if (!done && !path_of(fd))                                          \
            note_whole(fd);                                                 \
        else if (!done && !fstat(fd, &kind))                                \
            note(S_ISDIR(kind.st_mode) ? 'd' : 's', path_of(fd), 0, NULL, 0); \
        pthread_mutex_unlock(&lock);                                        \
        return done;                                                        \
    }
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    int done = REAL(unlink)(path);
    path = absolute(path);
    if (!done && watched(path)) note('u', path, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    int done = REAL(rename)(from, to);
    from = absolute(from);
    to = absolute(to);
    if (!done && watched(from)) note('r', from, 0, to, (uint32_t)strlen(to));
    pthread_mutex_unlock(&lock);
    return done;
}

int link(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    int done = REAL(link)(from, to);
    from = absolute(from);
    to = absolute(to);
    if (!done && watched(from)) note('l', from, 0, to, (uint32_t)strlen(to));
    pthread_mutex_unlock(&lock);
    return done;
}
