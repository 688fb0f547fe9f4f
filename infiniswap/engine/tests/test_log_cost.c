/* Proves what a log asks of a disk that is slow: how much it writes and reads beside what it is given, in how large pieces, and which
 * share of the disk's bandwidth is payload.  Prints it, for docs/performance.md. */
#include "log_disk_slow.h"

#include "log.h"

#include <sys/eventfd.h>
#include <sys/mman.h>

enum { MIB = 1 << 20, PAGE = ISW_PAGE_BYTES, IDLE_NS = 20000000 /* the device's tick */, IDLE_MAX = 1000, ROUND_NS = 200000, SEEK_NS = 8300000 };

enum disk { AS_A_GROUP_HAS_IT, ONE_BANDWIDTH, ONE_HEAD, ONE_HEAD_THAT_ONLY_WRITES /* the cleaner's reads cost nothing */ };

struct pattern {
    uint64_t size_bytes, live_bytes; /* of the device; what of it is ever written */
    uint64_t more_bytes;             /* of the file than the device needs */
    enum disk disk;
    uint32_t pending;                /* pages that wait or are in flight, at most */
    uint32_t hot_percent;            /* so many of 100 writes go to ... */
    uint32_t hot_share_percent;      /* ... so many of 100 pages; 0: anywhere */
    uint32_t lent_of_1000;           /* pages that are to be moved: so many the log need not read; 0: it does not ask */
    double passes;                   /* as much as is live is written so often, and then again so often to be looked at */
};

struct load {
    struct log_disk_slow disk;
    struct chance chance;
    isw_log *log;
    struct backup *backup;
    const struct pattern *pattern;
    uint64_t pages;
    struct slot {
        struct backup_request request;
        struct iovec iov;
        uint64_t page;
    } * slot;
    uint32_t *free_slot, free_slots;
    uint32_t *queue, queue_first, queued; /* slots that wait, oldest first; a ring */
    uint8_t *data, *busy;                 /* busy: of a page; 1: it waits, 2: it is in flight */
    uint32_t in_flight;
    uint64_t payload, idle;
};

static uint64_t draw(struct load *l)
{
    const struct pattern *p = l->pattern;
    uint64_t hot = l->pages * p->hot_share_percent / 100;
    if (!hot)
        return chance_below(&l->chance, l->pages);
    if (chance_below(&l->chance, 100) < p->hot_percent)
        return chance_below(&l->chance, hot) * 100 / p->hot_share_percent % l->pages; /* spread out */
    return chance_below(&l->chance, l->pages);
}

/* The client has always more; what waits already is rewritten there. */
static void take_pages(struct load *l, uint64_t next, bool in_order)
{
    while (l->free_slots) {
        uint64_t page = in_order ? next++ : draw(l);
        if (in_order && page >= l->pages)
            return;
        if (l->busy[page]) {
            if (in_order)
                FAIL("page %llu is written twice", (unsigned long long)page);
            continue;
        }
        uint32_t number = l->free_slot[--l->free_slots];
        struct slot *s = &l->slot[number];
        s->page = page;
        memcpy(s->iov.iov_base, &page, sizeof page);
        l->busy[page] = 1;
        l->queue[(l->queue_first + l->queued++) % l->pattern->pending] = number;
    }
}

static void hand_in(struct load *l, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct slot *s = &l->slot[l->queue[l->queue_first++ % l->pattern->pending]];
        l->queued--;
        l->in_flight++;
        l->busy[s->page] = 2;
        s->request = (struct backup_request){
            .kind = BACKUP_WRITE, .iov = &s->iov, .vectors = 1, .offset = s->page * PAGE, .bytes = PAGE, .owner = s};
        l->backup->methods->submit(l->backup, &s->request);
    }
    l->queue_first %= l->pattern->pending;
}

/* What waits, or a peer has. */
static void lend(void *owner, struct backup_loan *loans, uint32_t count)
{
    struct load *l = owner;
    for (uint32_t i = 0; i < count; i++) {
        struct backup_loan *loan = &loans[i];
        loan->got = chance_below(&l->chance, 1000) < l->pattern->lent_of_1000;
        loan->newer = l->busy[loan->page];
        memset(loan->data, 0, loan->got ? PAGE : 0);
        memcpy(loan->data, &loan->page, loan->got ? sizeof loan->page : 0);
        l->backup->methods->lent(l->backup, loan);
    }
}

/* As writeback.c: a full chunk, or what there is when nothing is in flight; and no more than it has requests for. */
static void turn(struct load *l)
{
    bool enough = !l->in_flight || l->queued >= LOG_CHUNK_ENTRIES;
    if (enough && l->in_flight <= 500)
        hand_in(l, l->queued < 1000 - l->in_flight ? l->queued : 1000 - l->in_flight);
    l->backup->methods->kick(l->backup);
    eventfd_t told;
    while (eventfd_read(l->backup->event_fd, &told) == 0 && !log_disk_slow_ready(&l->disk)) { /* the loop does not sleep */
        l->disk.clock.now_ns += ROUND_NS;
        l->backup->methods->kick(l->backup);
    }
    if (!log_disk_slow_step(&l->disk)) {
        CHECK(l->idle++ < IDLE_MAX);
        l->disk.clock.now_ns += IDLE_NS;
    }
    struct backup_request *list = l->backup->methods->reap(l->backup);
    while (list) {
        struct backup_request *r = list;
        list = r->next;
        CHECK(!r->error);
        struct slot *s = r->owner;
        l->busy[s->page] = 0;
        l->in_flight--;
        l->payload++;
        l->free_slot[l->free_slots++] = (uint32_t)(s - l->slot);
    }
}

static void begin(struct load *l, const struct pattern *pattern)
{
    uint64_t file_bytes;
    char error[64] = "";
    *l = (struct load){.chance = chance_start(1), .pattern = pattern, .pages = pattern->live_bytes / PAGE};
    CHECK(isw_log_file_bytes(pattern->size_bytes, &file_bytes) == 0);
    log_disk_slow_open(&l->disk, file_bytes + pattern->more_bytes);
    l->disk.seek_ns = pattern->disk < ONE_HEAD ? 0 : SEEK_NS;
    l->disk.one_bandwidth = pattern->disk == ONE_BANDWIDTH;
    l->disk.reads_free = pattern->disk == ONE_HEAD_THAT_ONLY_WRITES;
    CHECK(isw_log_format(l->disk.fd, pattern->size_bytes) == 0);
    l->log = isw_log_open(l->disk.fd, 0, error, sizeof error);
    CHECK(l->log);
    l->backup = log_backup_create(l->log, log_disk_slow_start(&l->disk));
    if (pattern->lent_of_1000)
        l->backup->methods->lender(l->backup, &(struct backup_lender){l, 0, lend});
    l->slot = calloc(pattern->pending, sizeof *l->slot);
    l->free_slot = calloc(pattern->pending, sizeof *l->free_slot);
    l->queue = calloc(pattern->pending, sizeof *l->queue);
    l->busy = calloc(l->pages, 1);
    l->data = mmap(NULL, (size_t)pattern->pending * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(l->slot && l->free_slot && l->queue && l->busy && l->data != MAP_FAILED);
    for (uint32_t i = 0; i < pattern->pending; i++) {
        l->slot[i].iov = (struct iovec){l->data + (size_t)i * PAGE, PAGE};
        l->free_slot[l->free_slots++] = i;
    }
}

static void end(struct load *l)
{
    while (l->in_flight || l->queued)
        turn(l);
    while (log_disk_slow_step(&l->disk)) /* the cleaner's */
        free(l->backup->methods->reap(l->backup));
    isw_log_close(l->log);
    munmap(l->data, (size_t)l->pattern->pending * PAGE);
    free(l->slot);
    free(l->free_slot);
    free(l->queue);
    free(l->busy);
    log_disk_slow_close(&l->disk);
}

struct cost {
    double payload_share; /* of the disk's bandwidth, by its own clock */
    double written, read; /* blocks for each page of payload */
    double write_kib, read_kib;
};

static struct cost run(const char *name, const struct pattern *pattern)
{
    static struct load l;
    begin(&l, pattern);
    for (uint64_t next = 0; next < l.pages;) {
        uint64_t room = l.free_slots;
        take_pages(&l, next, true);
        next += room;
        turn(&l);
    }
    for (uint64_t until = l.payload + (uint64_t)((double)l.pages * pattern->passes); l.payload < until; turn(&l))
        take_pages(&l, 0, false);
    struct log_disk_slow before = l.disk;
    uint64_t payload = l.payload, cleaned = l.log->cleaned_segments, checkpoints = l.log->checkpoints, borrowed = l.log->borrowed_pages;
    while (l.payload < payload + (uint64_t)((double)l.pages * pattern->passes)) {
        take_pages(&l, 0, false);
        turn(&l);
    }
    double pages = (double)(l.payload - payload), seconds = (double)(l.disk.clock.now_ns - before.clock.now_ns) / 1e9;
    uint64_t writes = l.disk.writes - before.writes, reads = l.disk.reads - before.reads;
    uint64_t written = l.disk.written_blocks - before.written_blocks, read = l.disk.read_blocks - before.read_blocks;
    struct cost cost = {.payload_share = pages * PAGE / seconds / (double)l.disk.bytes_per_s,
                        .written = (double)written / pages,
                        .read = (double)read / pages,
                        .write_kib = writes ? (double)written * 4 / (double)writes : 0,
                        .read_kib = reads ? (double)read * 4 / (double)reads : 0};
    printf("%-32s %4.2fx: payload %4.2f of the bandwidth; a page: %4.2f written, %4.2f read; a write %5.0f KiB, a read %5.0f KiB; "
           "%.2f borrowed; %.0f seeks, %.0f syncs, %.0f checkpoints, %.0f segments cleaned for 1000 MiB\n",
           name, (double)l.log->geometry.segments * LOG_SEGMENT_BLOCKS / (double)l.pages, cost.payload_share, cost.written, cost.read, cost.write_kib, cost.read_kib, (double)(l.log->borrowed_pages - borrowed) / pages,
           (double)(l.disk.seeks - before.seeks) * 256000 / pages, (double)(l.disk.syncs - before.syncs) * 256000 / pages, (double)(l.log->checkpoints - checkpoints) * 256000 / pages,
           (double)(l.log->cleaned_segments - cleaned) * 256000 / pages);
    fflush(stdout);
    end(&l);
    return cost;
}

/* What each may cost at most; a page that is dead when its segment is cleaned costs nothing. */
static void check(const struct cost *cost, double written, double payload_share)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    (void)cost, (void)written, (void)payload_share; /* a smaller device, and not long enough */
#else
    CHECK(cost->written <= written && cost->read <= written && cost->payload_share >= payload_share && cost->write_kib >= 800);
#endif
}

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SIZE = 32 * MIB };
#else
enum { SIZE = 256 * MIB };
#endif

static struct cost overwritten_on(enum disk disk, double live, double more, bool hot, uint32_t lent_of_1000)
{
    struct pattern p = {.size_bytes = SIZE,
                        .live_bytes = (uint64_t)(live * SIZE) / PAGE * PAGE,
                        .more_bytes = (uint64_t)(more * SIZE) / PAGE * PAGE,
                        .disk = disk,
                        .pending = 2048,
                        .lent_of_1000 = lent_of_1000,
                        .hot_percent = hot ? 90 : 0,
                        .hot_share_percent = hot ? 10 : 0,
                        .passes = (double)scaled(2)};
    static const char *const names[] = {"", ", one bandwidth", ", one head", ", one head, reads free"};
    char name[64], lent[32] = "";
    if (lent_of_1000)
        snprintf(lent, sizeof lent, ", %u of 1000 lent", lent_of_1000);
    snprintf(name, sizeof name, "%s%s%s", hot ? "90 of 100 to 10 of 100" : "anywhere", names[disk], lent);
    return run(name, &p);
}

static struct cost overwritten(double live, double more, bool hot)
{
    return overwritten_on(AS_A_GROUP_HAS_IT, live, more, hot, 0);
}

TEST(full_device_overwritten_anywhere)
{
    struct cost cost = overwritten(1, 0, false);
    check(&cost, 1.8, 0.55);
}

TEST(full_device_with_hot_pages)
{
    struct cost cost = overwritten(1, 0, true);
    check(&cost, 1.7, 0.55);
}

/* Room for each page that is live: twice, and three times. */
TEST(device_that_is_not_full)
{
    struct cost twice = overwritten(0.81, 0, false), thrice = overwritten(0.54, 0, false);
    check(&twice, 1.45, 0.7);
    check(&thrice, 1.2, 0.8);
}

/* --backup-log-space 200 and 250: a full device, and a larger file. */
TEST(full_device_with_more_room)
{
    struct cost twice = overwritten(1, 0.5, false), more = overwritten(1, 1, false);
    check(&twice, 1.4, 0.7);
    check(&more, 1.25, 0.75);
}

/* A disk with one head pays for what is read, and for the way there and back: what that comes to, what it is when the pages that are
 * moved are lent, and what it would be if all that the cleaner reads cost nothing. */
static void on_one_head(double more)
{
    struct cost all = overwritten_on(ONE_HEAD, 1, more, false, 0), least = overwritten_on(ONE_HEAD_THAT_ONLY_WRITES, 1, more, false, 0);
    struct cost lent = overwritten_on(ONE_HEAD, 1, more, false, 1000);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
    CHECK(all.payload_share >= 0.17 && all.payload_share < least.payload_share);
    CHECK(lent.payload_share >= 0.9 * least.payload_share && lent.read < 0.15 * all.read);
#else
    (void)all, (void)least, (void)lent;
#endif
}

TEST(one_head)
{
    on_one_head(0);
}

TEST(one_head_with_more_room)
{
    on_one_head(0.5);
    on_one_head(1);
}

/* So does one that has one bandwidth for reads and writes, as volumes of clouds; and one of a hundred pages has to be read after all. */
TEST(one_bandwidth)
{
    struct cost all = overwritten_on(ONE_BANDWIDTH, 1, 0, false, 0), lent = overwritten_on(ONE_BANDWIDTH, 1, 0, false, 1000);
    struct cost most = overwritten_on(ONE_BANDWIDTH, 1, 0, false, 990);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
    CHECK(lent.payload_share > 1.3 * all.payload_share && most.payload_share > 1.1 * all.payload_share);
#else
    (void)all, (void)lent, (void)most;
#endif
}
