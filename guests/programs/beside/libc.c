/* What picolibc asks of a board: a console to write to, memory, a clock. There are no files. */
#include "lib.h"
#include <errno.h>
#include <stdio.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/types.h>

#define RAM_END 0x88000000ul /* of 128 MiB */

static int put(char c, FILE *file)
{
    (void)file;
    putch(c);
    return (unsigned char)c;
}

static FILE console = FDEV_SETUP_STREAM(put, NULL, NULL, _FDEV_SETUP_WRITE);
FILE *const stdin = &console, *const stdout = &console, *const stderr = &console;

void *sbrk(ptrdiff_t by)
{
    static char *top = __heap;
    if (by < __heap - top || by > (char *)RAM_END - top) {
        errno = ENOMEM;
        return (void *)-1;
    }
    top += by;
    return top - by;
}

int gettimeofday(struct timeval *now, void *zone)
{
    (void)zone;
    now->tv_sec = mtime() / 10000000;
    now->tv_usec = mtime() % 10000000 / 10;
    return 0;
}

clock_t times(struct tms *used)
{
    clock_t ticks = mtime() / (10000000 / CLOCKS_PER_SEC);
    *used = (struct tms){ .tms_utime = ticks };
    return ticks;
}

static int no_file(void)
{
    errno = ENOENT;
    return -1;
}

int open(const char *path, int flags, ...) { return (void)path, (void)flags, no_file(); }
int close(int fd) { return (void)fd, no_file(); }
ssize_t read(int fd, void *to, size_t size) { return (void)fd, (void)to, (void)size, no_file(); }
ssize_t write(int fd, const void *from, size_t size) { return (void)fd, (void)from, (void)size, no_file(); }
off_t lseek(int fd, off_t to, int from) { return (void)fd, (void)to, (void)from, no_file(); }

void _exit(int code) { finish(code); }
int getpid(void) { return 1; }
int kill(int pid, int signal) { (void)pid, finish(128 + signal); }
