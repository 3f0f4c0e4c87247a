/* Delay file operations below the directory SLOW_DIRECTORY by SLOW_MS each, for LD_PRELOAD.
 *
 * - Delayed: open, close, write, flush, rename, remove, make a directory, list, look up. Reads are
 *   not, because clients of network storage have a cache.
 * - With SLOW_OPERATIONS, such as "rename", only the operations in its text are.
 * - With SLOW_LOG, each operation is a line of that file: seconds, process, thread, name, path.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILES = 1 << 16 };

static char *slow_files[MOST_FILES]; /* paths, by descriptor */

static int is_slow(const char *path) {
    const char *directory = getenv("SLOW_DIRECTORY");
    return path && directory && !strncmp(path, directory, strlen(directory));
}

static const char *slow_path(const char *path) { return is_slow(path) ? path : NULL; }

static const char *slow_file(int file) {
    return file >= 0 && file < MOST_FILES ? slow_files[file] : NULL;
}

static void record(const char *operation, const char *path) {
    const char *log = getenv("SLOW_LOG");
    if (!log) return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char line[1024];
    int size = snprintf(line, sizeof line, "%lld.%06ld %d %ld %s %s\n", (long long)now.tv_sec,
                        now.tv_nsec / 1000, getpid(), syscall(SYS_gettid), operation, path);
    /* The kernel is called directly, so that these three are not delayed. */
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    syscall(SYS_write, file, line, size < (int)sizeof line ? size : (int)sizeof line - 1);
    syscall(SYS_close, file);
}

static void wait_if(const char *operation, const char *path) {
    if (!path) return;
    const char *only = getenv("SLOW_OPERATIONS");
    if (only && !strstr(only, operation)) return;
    record(operation, path);
    double seconds = atof(getenv("SLOW_MS")) / 1000;
    struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

static int note(int file, const char *path) {
    if (file >= 0 && file < MOST_FILES) {
        free(slow_files[file]);
        slow_files[file] = path ? strdup(path) : NULL;
    }
    return file;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                                  \
        wait_if(#name, slow_path(path));                                               \
        return note(REAL(name)(path, flags, mode), slow_path(path));                   \
    }
OPEN(open)
OPEN(open64)

#define OPEN_AT(name)                                                                  \
    int name(int directory, const char *path, int flags, ...) {                        \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                                  \
        wait_if(#name, slow_path(path));                                               \
        return note(REAL(name)(directory, path, flags, mode), slow_path(path));        \
    }
OPEN_AT(openat)
OPEN_AT(openat64)

#define BY_PATH(type, name, parameters, arguments)                                     \
    type name parameters {                                                             \
        wait_if(#name, slow_path(path));                                               \
        return REAL(name) arguments;                                                   \
    }
BY_PATH(int, rename, (const char *path, const char *target), (path, target))
BY_PATH(int, unlink, (const char *path), (path))
BY_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH(int, rmdir, (const char *path), (path))
BY_PATH(DIR *, opendir, (const char *path), (path))
BY_PATH(int, stat, (const char *path, struct stat *found), (path, found))
BY_PATH(int, stat64, (const char *path, struct stat64 *found), (path, found))
BY_PATH(int, lstat, (const char *path, struct stat *found), (path, found))
BY_PATH(int, lstat64, (const char *path, struct stat64 *found), (path, found))
BY_PATH(int, access, (const char *path, int mode), (path, mode))

ssize_t write(int file, const void *bytes, size_t count) {
    wait_if("write", slow_file(file));
    return REAL(write)(file, bytes, count);
}

int fsync(int file) {
    wait_if("fsync", slow_file(file));
    return REAL(fsync)(file);
}

int close(int file) {
    wait_if("close", slow_file(file));
    note(file, NULL);
    return REAL(close)(file);
}
