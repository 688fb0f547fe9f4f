/* A wire of a chosen length between this network namespace and a new one, in which a program runs.
 *
 * usage: wire MICROSECONDS COMMAND [ARGUMENT...]
 *   Each packet arrives so much later, each way.  Here the wire's end is 10.231.0.1, there 10.231.0.2.  Ends with the command. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 9000, PACKETS = 1024 /* on their way in one direction; what comes beyond that is dropped, as a switch would */ };

struct direction {
    int from, to;
    uint32_t first, count;
    struct {
        uint64_t due_ns;
        size_t bytes;
        uint8_t data[MTU];
    } packet[PACKETS];
};

static struct direction directions[2];
static uint64_t delay_ns;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void set(int fd, unsigned long what, const char *name, const char *address)
{
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)(void *)&request.ifr_addr;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    in->sin_family = AF_INET;
    if (address && inet_pton(AF_INET, address, &in->sin_addr) != 1)
        fail(address);
    if (what == SIOCSIFMTU)
        request.ifr_mtu = MTU;
    if (what == SIOCSIFFLAGS)
        request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, what, &request) < 0)
        fail(name);
}

/* In the namespace that this thread is in now. */
static int open_end(const char *address)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || control < 0 || ioctl(fd, TUNSETIFF, &request) < 0)
        fail("/dev/net/tun");
    set(control, SIOCSIFADDR, request.ifr_name, address);
    set(control, SIOCSIFNETMASK, request.ifr_name, "255.255.255.252");
    set(control, SIOCSIFMTU, request.ifr_name, NULL);
    set(control, SIOCSIFFLAGS, request.ifr_name, NULL);
    set(control, SIOCSIFFLAGS, "lo", NULL);
    close(control);
    return fd;
}

static void take(struct direction *d)
{
    static uint8_t spill[MTU];
    for (;;) {
        bool room = d->count < PACKETS;
        uint32_t at = (d->first + d->count) % PACKETS;
        ssize_t got = read(d->from, room ? d->packet[at].data : spill, MTU);
        if (got <= 0)
            return;
        if (!room)
            continue;
        d->packet[at].bytes = (size_t)got;
        d->packet[at].due_ns = now_ns() + delay_ns;
        d->count++;
    }
}

/* When the next one is due; 0: there is none. */
static uint64_t deliver(struct direction *d)
{
    while (d->count && d->packet[d->first].due_ns <= now_ns()) {
        if (write(d->to, d->packet[d->first].data, d->packet[d->first].bytes) < 0 && errno == EAGAIN)
            return now_ns() + 10000;
        d->first = (d->first + 1) % PACKETS;
        d->count--;
    }
    return d->count ? d->packet[d->first].due_ns : 0;
}

static void pump(pid_t child)
{
    for (;;) {
        uint64_t due_ns = 0, now = now_ns();
        for (int i = 0; i < 2; i++) {
            uint64_t next = deliver(&directions[i]);
            if (next && (!due_ns || next < due_ns))
                due_ns = next;
        }
        struct pollfd wait[2] = {{.fd = directions[0].from, .events = POLLIN}, {.fd = directions[1].from, .events = POLLIN}};
        uint64_t left_ns = !due_ns ? 100000000u : due_ns > now ? due_ns - now : 0;
        struct timespec timeout = {.tv_sec = 0, .tv_nsec = (long)left_ns};
        if (ppoll(wait, 2, &timeout, NULL) < 0 && errno != EINTR)
            fail("ppoll");
        take(&directions[0]);
        take(&directions[1]);
        if (!due_ns && waitpid(child, NULL, WNOHANG) == child)
            exit(0);
    }
}

static pid_t child;

static void end(int number)
{
    (void)number;
    kill(child, SIGTERM);
}

int main(int argc, char **argv)
{
    char *rest;
    if (argc < 3 || (delay_ns = strtoull(argv[1], &rest, 10) * 1000, *rest) || delay_ns > 100000000u) {
        fprintf(stderr, "usage: wire MICROSECONDS COMMAND [ARGUMENT...]\n");
        return 2;
    }
    int here = open_end("10.231.0.1");
    if (unshare(CLONE_NEWNET) < 0)
        fail("a network namespace");
    int there = open_end("10.231.0.2");
    directions[0].from = directions[1].to = here;
    directions[0].to = directions[1].from = there;
    prctl(PR_SET_TIMERSLACK, 1);
    child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(argv[2], argv + 2);
        fail(argv[2]);
    }
    struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    pump(child);
}
