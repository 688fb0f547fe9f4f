/* Proves for both backends: every byte goes where it should, whatever moves at once and however little at a time; errors are
 * told; zeroed ranges read as zero and keep or free their space as asked. */
#include "check.h"
#include "fake_backup.h"

#include "backup.h"
#include "infiniswap_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = ISW_PAGE_BYTES, PAGES = 1024, SIZE = PAGES * PAGE, CAPACITY = 64, VECTORS = 16 };

typedef struct backup *create_function(int fd, bool sparse, uint32_t capacity);

/* A file that has no name; on the disk of the working directory, so that it has extents and knows O_DIRECT. */
static int open_file(int flags)
{
    int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    if (fd < 0 && flags)
        return -1; /* the file system has no O_DIRECT */
    if (fd < 0)
        fd = memfd_create("image", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    return fd;
}

static struct backup *create(create_function *function, int fd, bool sparse)
{
    struct backup *b = function(fd, sparse, CAPACITY);
    if (!b)
        FAIL("no backend: %s", strerror(errno));
    return b;
}

static bool told(const struct backup *b, int wait_ms)
{
    struct pollfd wait = {.fd = b->event_fd, .events = POLLIN};
    eventfd_t ignored;
    bool come = poll(&wait, 1, wait_ms) == 1;
    if (come)
        eventfd_read(b->event_fd, &ignored);
    return come;
}

/* Waits until one or more are done. */
static struct backup_request *await(struct backup *b)
{
    for (;;) {
        b->methods->kick(b);
        struct backup_request *list = b->methods->reap(b);
        if (list)
            return list;
        if (!told(b, WAIT_S_MAX * 1000))
            FAIL("nothing is done after %d s", WAIT_S_MAX);
    }
}

static int perform(struct backup *b, enum backup_kind kind, void *data, uint64_t offset, uint64_t bytes)
{
    struct iovec iov = {data, bytes};
    struct backup_request r = {.kind = kind, .iov = &iov, .vectors = 1, .offset = offset, .bytes = bytes, .error = -1};
    b->methods->submit(b, &r);
    struct backup_request *done = await(b);
    CHECK(done == &r && !done->next);
    return r.error;
}

struct slot {
    struct backup_request request;
    struct iovec iov[VECTORS];
    uint8_t *data;
    bool out;
};

static uint8_t image[SIZE], busy[PAGES];
static struct slot slots[CAPACITY];

static void finish(struct slot *s)
{
    uint64_t first = s->request.offset / PAGE;
    CHECK_EQUAL(s->request.error, 0);
    s->out = false;
    if (s->request.kind == BACKUP_READ)
        CHECK(!memcmp(s->data, image + s->request.offset, s->request.bytes));
    for (uint64_t i = 0; s->request.kind != BACKUP_SYNC && i < s->request.bytes / PAGE; i++)
        busy[first + i] = 0;
}

/* A request for pages that no other has: so what it reads is known. */
static bool begin(struct chance *c, struct slot *s)
{
    uint64_t first = chance_below(c, PAGES - VECTORS), pages = 1 + chance_below(c, VECTORS);
    enum backup_kind kind = (enum backup_kind[]){BACKUP_READ, BACKUP_WRITE, BACKUP_WRITE, BACKUP_ZERO,
                                                 BACKUP_SYNC}[chance_below(c, 5)];
    for (uint64_t i = 0; kind != BACKUP_SYNC && i < pages; i++)
        if (busy[first + i])
            return false;
    s->request = (struct backup_request){.kind = kind, .offset = first * PAGE, .bytes = pages * PAGE, .iov = s->iov, .error = -1};
    for (uint64_t i = 0; kind != BACKUP_SYNC && i < pages; i++)
        busy[first + i] = 1;
    if (kind == BACKUP_WRITE) {
        for (uint64_t i = 0; i < pages * PAGE; i += 8) {
            uint64_t word = chance_next(c);
            memcpy(s->data + i, &word, 8);
        }
        memcpy(image + first * PAGE, s->data, pages * PAGE);
    } else if (kind == BACKUP_ZERO) {
        memset(image + first * PAGE, 0, pages * PAGE);
    }
    for (uint64_t at = 0; kind <= BACKUP_WRITE && at < pages;) {
        uint64_t now = 1 + chance_below(c, pages - at);
        s->iov[s->request.vectors++] = (struct iovec){s->data + at * PAGE, now * PAGE};
        at += now;
    }
    s->out = true;
    return true;
}

static void random_load(create_function *function, int fd, bool sparse)
{
    struct chance chance = chance_start(1);
    struct backup *b = create(function, fd, sparse);
    uint32_t out = 0;
    uint8_t *data = aligned_alloc(PAGE, CAPACITY * VECTORS * PAGE);
    memset(image, 0, SIZE);
    for (uint64_t done = 0; done < scaled(2000) || out;) {
        for (uint32_t i = 0; i < CAPACITY && done < scaled(2000); i++) {
            slots[i].data = data + i * VECTORS * PAGE;
            if (!slots[i].out && chance_in(&chance, 3) && begin(&chance, &slots[i])) {
                b->methods->submit(b, &slots[i].request);
                out++;
            }
        }
        if (!out)
            continue;
        for (struct backup_request *r = await(b), *next; r; r = next, done++, out--) {
            next = r->next;
            finish((struct slot *)r);
        }
    }
    b->methods->destroy(b);
    CHECK(pread(fd, data, VECTORS * PAGE, 0) == VECTORS * PAGE && !memcmp(data, image, VECTORS * PAGE));
    free(data);
}

static void every_kind_of_file(create_function *function)
{
    int fd = open_file(0), direct = open_file(O_DIRECT), memory = memfd_create("image", MFD_CLOEXEC);
    CHECK(memory >= 0 && ftruncate(memory, SIZE) == 0);
    random_load(function, memory, true);
    random_load(function, fd, false);
    if (direct >= 0) {
        random_load(function, direct, true);
        close(direct);
    }
    close(fd);
    close(memory);
}

TEST(random_load_uring)
{
    every_kind_of_file(backup_uring_create);
}

TEST(random_load_threads)
{
    every_kind_of_file(backup_threads_create);
}

/* The image ends early, and a write meets the limit of file sizes in its middle: first a short transfer, then an error. */
static void short_and_failing(create_function *function)
{
    static uint8_t data[8 * PAGE];
    int fd = open_file(0);
    memset(data, 0x5a, sizeof data);
    CHECK(pwrite(fd, data, sizeof data, 0) == sizeof data && ftruncate(fd, 3 * PAGE + 100) == 0);
    struct backup *b = create(function, fd, true);
    memset(data, 0, sizeof data);
    CHECK_EQUAL(perform(b, BACKUP_READ, data, PAGE, 4 * PAGE), EIO);
    CHECK(data[0] == 0x5a && data[2 * PAGE + 99] == 0x5a && data[2 * PAGE + 100] == 0);
    CHECK_EQUAL(perform(b, BACKUP_READ, data, PAGES * PAGE, PAGE), EIO);
    CHECK_EQUAL(perform(b, BACKUP_SYNC, NULL, 0, 0), 0);

    struct rlimit limit, old;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    limit = (struct rlimit){6 * PAGE, old.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    memset(data, 0x6b, sizeof data);
    CHECK_EQUAL(perform(b, BACKUP_WRITE, data, 2 * PAGE, 8 * PAGE), EFBIG);
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    CHECK(pread(fd, data, PAGE, 5 * PAGE) == PAGE && data[0] == 0x6b && data[PAGE - 1] == 0x6b);
    b->methods->destroy(b);

    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int only_read = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(only_read >= 0);
    b = create(function, only_read, true);
    CHECK_EQUAL(perform(b, BACKUP_WRITE, data, 0, PAGE), EBADF);
    CHECK_EQUAL(perform(b, BACKUP_ZERO, NULL, 0, PAGE), EBADF);
    CHECK_EQUAL(perform(b, BACKUP_READ, data, 0, PAGE), 0);
    b->methods->destroy(b);
    close(only_read);
    close(fd);
}

TEST(short_and_failing_uring)
{
    short_and_failing(backup_uring_create);
}

TEST(short_and_failing_threads)
{
    short_and_failing(backup_threads_create);
}

/* As many as were agreed on, all submitted before the first kick; and what is in flight when it ends is waited for. */
static void full_queue(create_function *function)
{
    static uint8_t page[PAGE];
    int fd = open_file(0);
    struct backup *b = create(function, fd, true);
    for (uint32_t round = 0; round < 3; round++) {
        uint32_t done = 0;
        for (uint32_t i = 0; i < CAPACITY; i++) {
            slots[i].iov[0] = (struct iovec){page, PAGE};
            slots[i].request = (struct backup_request){
                .kind = BACKUP_WRITE, .iov = slots[i].iov, .vectors = 1, .offset = i * PAGE, .bytes = PAGE};
            b->methods->submit(b, &slots[i].request);
        }
        while (done < CAPACITY)
            for (struct backup_request *r = await(b); r; r = r->next, done++)
                CHECK_EQUAL(r->error, 0);
        CHECK_EQUAL(done, CAPACITY);
    }
    b->methods->destroy(b);
    close(fd);
}

TEST(full_queue_uring)
{
    full_queue(backup_uring_create);
}

TEST(full_queue_threads)
{
    full_queue(backup_threads_create);
}

/* Who does not wait is not woken, finds what is done when he looks, and misses nothing when he begins to wait. */
TEST(only_who_waits_is_told_uring)
{
    static uint8_t page[PAGE];
    int fd = open_file(0);
    struct backup *b = create(backup_uring_create, fd, true);
    struct iovec iov = {page, PAGE};
    for (uint32_t round = 0; round < 100; round++) {
        struct backup_request r = {.kind = BACKUP_WRITE, .iov = &iov, .vectors = 1, .bytes = PAGE, .error = -1};
        bool waits = round % 2;
        CHECK(!b->methods->attend(b, waits));
        b->methods->submit(b, &r);
        b->methods->kick(b);
        for (int ms = 0; !waits && !b->methods->attend(b, false); ms++)
            CHECK(!told(b, 1) && ms < WAIT_S_MAX * 1000);
        CHECK(waits ? told(b, WAIT_S_MAX * 1000) : b->methods->attend(b, true));
        CHECK(b->methods->reap(b) == &r);
        CHECK_EQUAL(r.error, 0);
    }
    b->methods->destroy(b);
    close(fd);
}

/* Writes that cannot go on, as where there is no memory for them, take not all of the threads: a page-in is served. */
TEST(reads_pass_writes_that_wait)
{
    enum { STUCK = 16 };
    static uint8_t page[PAGE];
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), fd = memfd_create("image", MFD_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    if (uffd < 0 && errno == EPERM)
        return; /* whoever runs this may not make threads of the kernel wait */
    uint8_t *nobody = mmap(NULL, STUCK * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(uffd >= 0 && fd >= 0 && nobody != MAP_FAILED && ftruncate(fd, SIZE) == 0 && ioctl(uffd, UFFDIO_API, &api) == 0);
    struct uffdio_register area = {.range = {(uintptr_t)nobody, STUCK * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &area) == 0);
    struct backup *b = create(backup_threads_create, fd, true);
    for (uint32_t i = 0; i < STUCK; i++) {
        slots[i].iov[0] = (struct iovec){nobody + i * PAGE, PAGE};
        slots[i].request = (struct backup_request){
            .kind = BACKUP_WRITE, .iov = slots[i].iov, .vectors = 1, .offset = i * PAGE, .bytes = PAGE, .error = -1};
        b->methods->submit(b, &slots[i].request);
    }
    for (uint32_t i = 0; i < 3; i++)
        CHECK_EQUAL(perform(b, BACKUP_READ, page, 32 * PAGE, PAGE), 0);
    struct uffdio_zeropage here = {.range = area.range};
    CHECK(ioctl(uffd, UFFDIO_ZEROPAGE, &here) == 0);
    for (uint32_t done = 0; done < STUCK;)
        for (struct backup_request *r = await(b); r; r = r->next, done++)
            CHECK_EQUAL(r->error, 0);
    b->methods->destroy(b);
    munmap(nobody, STUCK * PAGE);
    close(uffd);
    close(fd);
}

/* Every way in which a transfer can come in two parts leaves the rest of the vectors to be moved. */
TEST(rest_of_a_short_transfer)
{
    for (uint64_t moved = 1; moved < 3 * PAGE; moved += 511) {
        struct iovec iov[3] = {{(void *)(uintptr_t)PAGE, PAGE}, {(void *)(uintptr_t)(9 * PAGE), PAGE},
                               {(void *)(uintptr_t)(20 * PAGE), PAGE}};
        struct backup_request r = {.kind = BACKUP_WRITE, .iov = iov, .vectors = 3, .bytes = 3 * PAGE};
        static const uint64_t at[3] = {PAGE, 9 * PAGE, 20 * PAGE};
        CHECK(!backup_transferred(&r, -EINTR) && !backup_transferred(&r, -EAGAIN) && !r.moved);
        CHECK(!backup_transferred(&r, (int64_t)moved));
        CHECK_EQUAL(r.moved, moved);
        CHECK_EQUAL(r.vectors, 3 - moved / PAGE);
        CHECK_EQUAL((uintptr_t)r.iov->iov_base, at[moved / PAGE] + moved % PAGE);
        CHECK_EQUAL(r.iov->iov_len, PAGE - moved % PAGE);
        struct backup_request end = r;
        CHECK(backup_transferred(&end, 0) && end.error == EIO);
        end = r;
        CHECK(backup_transferred(&end, -ENOSPC) && end.error == ENOSPC);
        CHECK(backup_transferred(&r, (int64_t)(3 * PAGE - moved)) && r.error == 0);
    }
}

static uint64_t blocks(int fd)
{
    struct stat status;
    CHECK(fstat(fd, &status) == 0);
    return (uint64_t)status.st_blocks;
}

/* by_hand: as when fallocate was refused before.  More than one piece, and less than one at the end. */
static void zeroes(create_function *function, int fallocate_error, bool by_hand)
{
    enum { ZEROED = 300 };
    static uint8_t data[(ZEROED + 24) * PAGE], zero[ZEROED * PAGE];
    int fd = open_file(0);
    bool knows_zero_range = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, PAGE) == 0;
    fake_fallocate_error = fallocate_error;
    for (int sparse = 0; sparse < 2; sparse++) {
        memset(data, 0x77, sizeof data);
        CHECK(pwrite(fd, data, sizeof data, 0) == sizeof data && fsync(fd) == 0);
        uint64_t before = blocks(fd);
        struct backup *b = create(function, fd, sparse);
        if (by_hand)
            b->zero_way = BACKUP_ZERO_WRITES;
        CHECK_EQUAL(perform(b, BACKUP_ZERO, NULL, 8 * PAGE, ZEROED * PAGE), 0);
        if (fallocate_error == EOPNOTSUPP)
            CHECK_EQUAL(b->zero_way, BACKUP_ZERO_WRITES); /* it is not asked again */
        b->methods->destroy(b);
        CHECK(pread(fd, data, sizeof data, 0) == sizeof data);
        CHECK(!memcmp(data + 8 * PAGE, zero, ZEROED * PAGE));
        CHECK(data[8 * PAGE - 1] == 0x77 && data[(8 + ZEROED) * PAGE] == 0x77);
        if (sparse && !fallocate_error && !by_hand)
            CHECK(blocks(fd) + ZEROED * 8 <= before + 8);
        if (!sparse && knows_zero_range)
            CHECK(blocks(fd) >= before);
    }
    fake_fallocate_error = 0;
    close(fd);
}

TEST(zeroes_uring)
{
    zeroes(backup_uring_create, 0, false);
}

TEST(zeroes_threads)
{
    zeroes(backup_threads_create, 0, false);
}

/* Where fallocate cannot: written by hand, piece by piece, by whoever does the other I/O, and never on the caller's thread. */
TEST(zeroes_by_hand)
{
    zeroes(backup_threads_create, EOPNOTSUPP, false);
    zeroes(backup_threads_create, EIO, false);
    zeroes(backup_threads_create, 0, true);
    zeroes(backup_uring_create, 0, true);
}

/* What cannot be zeroed in any way is told. */
TEST(zeroes_refused)
{
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    create_function *functions[] = {backup_uring_create, backup_threads_create};
    for (uint32_t i = 0; i < 2; i++) {
        struct backup *b = create(functions[i], fd, true);
        CHECK_EQUAL(perform(b, BACKUP_ZERO, NULL, 0, 4 * PAGE), EBADF);
        b->methods->destroy(b);
    }
    close(fd);
}
