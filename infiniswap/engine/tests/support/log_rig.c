#include "log_rig.h"

#include "log.h"

#include <errno.h>
#include <poll.h>

enum { PAGE = ISW_PAGE_BYTES, STEPS_MAX = 100000, IDLE_MAX = 500, TURN_NS = 100000, IDLE_NS = 20000000, SETTLED_NS = 1000000000 };

static uint64_t faults(const struct log_rig *rig)
{
    return rig->disk.write_faults + rig->disk.sync_faults;
}

/* ---- a request ---- */

static bool any_busy(const struct log_rig *rig, uint64_t first, uint64_t pages)
{
    for (uint32_t i = 0; i < LOG_RIG_SLOTS; i++) {
        const struct backup_request *r = &rig->slot[i].request;
        if (rig->slot[i].out && r->bytes && first * PAGE < r->offset + r->bytes && r->offset < (first + pages) * PAGE)
            return true;
    }
    return false;
}

static void prepare_vectors(struct log_rig *rig, struct log_rig_slot *s, uint64_t pages)
{
    s->request.iov = s->iov;
    for (uint64_t at = 0; at < pages;) {
        uint64_t now = 1 + chance_below(&rig->chance, chance_in(&rig->chance, 2) ? 1 : pages - at);
        s->iov[s->request.vectors++] = (struct iovec){s->data + at * PAGE, now * PAGE};
        at += now;
    }
}

bool log_rig_submit(struct log_rig *rig, enum backup_kind kind, uint64_t first, uint64_t pages)
{
    bool sync = kind == BACKUP_SYNC || kind == BACKUP_SYNC_STATE;
    uint32_t i = 0;
    while (i < LOG_RIG_SLOTS && rig->slot[i].out)
        i++;
    if (i == LOG_RIG_SLOTS || (sync ? rig->sync_out : any_busy(rig, first, pages)))
        return false;
    struct log_rig_slot *s = &rig->slot[i];
    s->request = (struct backup_request){.kind = kind, .offset = first * PAGE, .bytes = pages * PAGE, .fd = -1, .error = -1};
    s->request.together = kind == BACKUP_READ && rig->together_one_in && chance_in(&rig->chance, rig->together_one_in);
    s->out = true;
    s->faults = faults(rig);
    s->read_faults = rig->disk.read_faults;
    s->steps = rig->steps;
    if (sync) {
        s->request.offset = s->request.bytes = 0;
        rig->sync_out = true;
        if (kind == BACKUP_SYNC)
            log_oracle_sync_sent(&rig->oracle);
        else
            s->request.fd = rig->disk.fd;
    }
    for (uint64_t at = 0; !sync && kind != BACKUP_READ && at < pages; at++) {
        uint32_t version = log_oracle_sent(&rig->oracle, first + at, kind == BACKUP_ZERO);
        if (kind == BACKUP_WRITE)
            log_oracle_fill(first + at, version, s->data + at * PAGE);
    }
    if (kind == BACKUP_READ)
        memset(s->data, 0xee, pages * PAGE);
    if (kind == BACKUP_READ || kind == BACKUP_WRITE)
        prepare_vectors(rig, s, pages);
    rig->out++;
    rig->requests++;
    rig->backup->methods->submit(rig->backup, &s->request);
    return true;
}

/* An error has a reason: the disk's, since the request was sent, or a moment before. */
static void check_error(const struct log_rig *rig, const struct log_rig_slot *s)
{
    static const char *const names[] = {"read", "write", "sync", "zero", "sync of the state"};
    if (s->faults == faults(rig) && (!rig->faults_seen || rig->disk.now_ns - rig->last_fault_ns > SETTLED_NS))
        FAIL("a %s of page %llu + %llu fails (%s), and the disk has not", names[s->request.kind],
             (unsigned long long)s->request.offset / PAGE, (unsigned long long)s->request.bytes / PAGE,
             strerror(s->request.error));
}

static void finish_read(struct log_rig *rig, struct log_rig_slot *s)
{
    uint64_t first = s->request.offset / PAGE, pages = s->request.bytes / PAGE;
    bool may_fail = s->read_faults != rig->disk.read_faults;
    if (s->request.error && pages > 1) {
        for (uint64_t i = 0; i < pages && !may_fail; i++)
            may_fail = rig->oracle.page[first + i].doubt || rig->oracle.page[first + i].rotten || rig->oracle.page[first + i].mood == LOG_PAGE_CUT;
        if (!may_fail)
            FAIL("pages %llu + %llu cannot be read", (unsigned long long)first, (unsigned long long)pages);
        return;
    }
    for (uint64_t i = 0; i < pages; i++)
        log_oracle_read(&rig->oracle, first + i, s->request.error ? NULL : s->data + i * PAGE, may_fail, "a read");
}

static void finish_sync(struct log_rig *rig, struct log_rig_slot *s)
{
    bool ok = !s->request.error;
    rig->sync_out = false;
    if (s->request.kind == BACKUP_SYNC_STATE)
        return;
    if (!ok && rig->faults_synced == faults(rig))
        check_error(rig, s);
    if (ok)
        rig->faults_synced = s->faults;
    rig->sync_errors += !ok;
    log_oracle_synced(&rig->oracle, ok);
}

static void finish(struct log_rig *rig, struct log_rig_slot *s)
{
    struct backup_request *r = &s->request;
    CHECK(s->out && r->error >= 0);
    s->out = false;
    rig->out--;
    rig->errors += r->error != 0;
    if (r->kind == BACKUP_READ) {
        finish_read(rig, s);
    } else if (r->kind == BACKUP_SYNC || r->kind == BACKUP_SYNC_STATE) {
        finish_sync(rig, s);
    } else {
        if (r->error)
            check_error(rig, s);
        for (uint64_t at = 0; at < r->bytes / PAGE; at++)
            log_oracle_done(&rig->oracle, r->offset / PAGE + at, !r->error);
    }
}

/* ---- turns ---- */

static bool readable(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, 0) == 1;
}

bool log_rig_round(struct log_rig *rig)
{
    uint64_t steps = chance_in(&rig->chance, 3) ? chance_below(&rig->chance, 64) : chance_below(&rig->chance, 4);
    bool moved = false;
    rig->disk.now_ns += TURN_NS;
    rig->backup->methods->kick(rig->backup);
    moved = log_lender_answer(rig);
    for (uint64_t i = 0; i <= steps && log_disk_step(&rig->disk); i++, rig->steps++)
        moved = true;
    if (faults(rig) != rig->faults_seen) {
        rig->faults_seen = faults(rig);
        rig->last_fault_ns = rig->disk.now_ns;
    }
    if (rig->disk.dead || !readable(rig->backup->event_fd))
        return moved;
    for (struct backup_request *r = rig->backup->methods->reap(rig->backup), *next; r && !rig->disk.dead; r = next, moved = true) {
        next = r->next;
        finish(rig, (struct log_rig_slot *)r);
    }
    for (uint32_t i = 0; i < LOG_RIG_SLOTS; i++)
        if (rig->slot[i].out && !rig->disk.manners.hold && rig->steps - rig->slot[i].steps > STEPS_MAX)
            FAIL("a request of kind %d waits for ever", rig->slot[i].request.kind);
    return moved;
}

/* Nothing moves: then time does, as the device's loop has a tick. */
static void turn(struct log_rig *rig, uint32_t *idle)
{
    *idle = log_rig_round(rig) ? 0 : *idle + 1;
    if (*idle > 2)
        rig->disk.now_ns += IDLE_NS;
    if (*idle > IDLE_MAX)
        FAIL("stuck: %u requests are out, %u wait at the disk, and nothing moves", rig->out, log_disk_waiting(&rig->disk));
}

void log_rig_settle(struct log_rig *rig)
{
    uint32_t idle = 0;
    while (rig->out && !rig->disk.dead)
        turn(rig, &idle);
}

int log_rig_do(struct log_rig *rig, enum backup_kind kind, uint64_t first, uint64_t pages)
{
    CHECK(!rig->out && log_rig_submit(rig, kind, first, pages));
    log_rig_settle(rig);
    return rig->slot[0].request.error;
}

void log_rig_ask(struct log_rig *rig, const struct log_rig_load *load)
{
    struct chance *c = &rig->chance;
    uint64_t dice = chance_below(c, 100), all = rig->oracle.pages, most = load->pages_max;
    enum backup_kind kind = dice < load->reads                                               ? BACKUP_READ
                            : dice < load->reads + load->zeroes                              ? BACKUP_ZERO
                            : dice < load->reads + load->zeroes + load->syncs                ? BACKUP_SYNC
                            : dice < load->reads + load->zeroes + load->syncs + load->states ? BACKUP_SYNC_STATE
                                                                                             : BACKUP_WRITE;
    if (kind == BACKUP_READ)
        most = LOG_RIG_READ_PAGES;
    if (kind == BACKUP_ZERO && chance_in(c, 8))
        most = LOG_RIG_ZERO_PAGES;
    uint64_t pages = chance_in(c, 3) ? 1 + chance_below(c, most) : 1 + chance_below(c, most < 4 ? most : 4);
    bool hot = load->hot_pages && !chance_in(c, 4);
    uint64_t first = hot ? load->hot_first + chance_below(c, load->hot_pages) : chance_below(c, all);
    uint64_t end = hot ? load->hot_first + load->hot_pages : all;
    pages = pages < end - first ? pages : end - first;
    log_rig_submit(rig, kind, first, pages);
}

void log_rig_run(struct log_rig *rig, const struct log_rig_load *load, uint64_t requests)
{
    uint64_t until = rig->requests + requests;
    uint32_t idle = 0;
    while (rig->requests < until && !rig->disk.dead) {
        for (uint32_t i = 0; i < 8 && rig->out < load->depth && rig->requests < until && !rig->disk.dead; i++)
            log_rig_ask(rig, load);
        if (!rig->disk.dead)
            turn(rig, &idle);
    }
}

void log_rig_read_all(struct log_rig *rig)
{
    CHECK(!rig->out);
    for (uint64_t page = 0; page < rig->oracle.pages && !rig->disk.dead; page += LOG_RIG_READ_PAGES) {
        uint64_t left = rig->oracle.pages - page, pages = left < LOG_RIG_READ_PAGES ? left : LOG_RIG_READ_PAGES;
        if (log_rig_do(rig, BACKUP_READ, page, pages) && !rig->disk.dead)
            for (uint64_t i = 0; i < pages; i++)
                log_rig_do(rig, BACKUP_READ, page + i, 1);
    }
}

void log_rig_fill(struct log_rig *rig)
{
    for (uint64_t page = 0; page < rig->oracle.pages; page += LOG_RIG_WRITE_PAGES) {
        uint64_t left = rig->oracle.pages - page;
        CHECK_EQUAL(log_rig_do(rig, BACKUP_WRITE, page, left < LOG_RIG_WRITE_PAGES ? left : LOG_RIG_WRITE_PAGES), 0);
    }
}

struct isw_log_info log_rig_info(const struct log_rig *rig)
{
    struct isw_log_info now;
    isw_log_info(rig->log, &now);
    return now;
}

uint64_t log_rig_block_of(const struct log_rig *rig, uint64_t page)
{
    CHECK(rig->log->place[page] && rig->log->place[page] != LOG_PLACE_BAD);
    return log_place_offset(rig->log, rig->log->place[page]) / PAGE;
}

/* ---- lives ---- */

bool log_rig_start(struct log_rig *rig, uint32_t flags)
{
    char error[256] = "";
    CHECK(!rig->log);
    rig->disk.dead = false;
    rig->log = isw_log_open(rig->disk.fd, flags, error, sizeof error);
    if (rig->disk.dead) {
        if (rig->log)
            isw_log_close(rig->log);
        rig->log = NULL;
        log_disk_kill(&rig->disk);
        return false;
    }
    if (!rig->log)
        FAIL("the log cannot be opened: %s", error);
    rig->backup = log_backup_create(rig->log, log_disk_start(&rig->disk));
    CHECK(rig->backup);
    log_lender_start(rig);
    return true;
}

static void end(struct log_rig *rig)
{
    rig->backup->methods->destroy(rig->backup);
    rig->backup = NULL;
    isw_log_close(rig->log);
    rig->log = NULL;
    rig->sync_out = false;
    rig->out = 0;
    for (uint32_t i = 0; i < LOG_RIG_SLOTS; i++)
        rig->slot[i].out = false;
}

void log_rig_check_extents(const struct log_rig *rig)
{
    struct isw_log_info info;
    uint64_t at = 0, first, end_page, placed = 0;
    isw_log_info(rig->log, &info);
    CHECK_EQUAL(info.size_bytes, rig->size_bytes);
    CHECK(info.free_segments <= info.segments && info.file_bytes <= rig->disk.size_bytes);
    while (isw_log_extent(rig->log, at, &first, &end_page)) {
        CHECK(first >= at && end_page > first && end_page <= rig->oracle.pages);
        for (; at < end_page; at++)
            if (log_oracle_placed(&rig->oracle, at) == (at < first))
                FAIL("page %llu: an extent says that it has %s place", (unsigned long long)at, at < first ? "no" : "a");
        placed += end_page - first;
    }
    for (; at < rig->oracle.pages; at++)
        CHECK(log_oracle_placed(&rig->oracle, at) != 1);
    CHECK_EQUAL(info.live_pages, placed);
}
void log_rig_stop(struct log_rig *rig)
{
    CHECK(!rig->out);
    while (rig->backup->methods->busy(rig->backup) && log_rig_round(rig))
        ;
    log_rig_stop_deaf(rig);
}

void log_rig_stop_deaf(struct log_rig *rig)
{
    end(rig);
}

void log_rig_reopen(struct log_rig *rig, uint32_t flags)
{
    log_rig_settle(rig);
    log_rig_stop(rig);
    CHECK(log_rig_start(rig, flags));
}

void log_rig_kill(struct log_rig *rig)
{
    log_disk_kill(&rig->disk);
    log_oracle_killed(&rig->oracle);
    if (rig->backup)
        end(rig);
}

void log_rig_power_cut(struct log_rig *rig)
{
    log_disk_power_cut(&rig->disk);
    log_oracle_power_cut(&rig->oracle);
}

static void doubt(void *owner)
{
    log_oracle_doubt(&((struct log_rig *)owner)->oracle);
}

void log_rig_open(struct log_rig *rig, uint64_t size_bytes, struct chance chance)
{
    uint8_t *data = rig->data;
    uint64_t file_bytes;
    *rig = (struct log_rig){.size_bytes = size_bytes, .chance = chance, .data = data, .together_one_in = 2};
    if (!data)
        rig->data = aligned_alloc(PAGE, (size_t)LOG_RIG_SLOTS * LOG_RIG_WRITE_PAGES * PAGE);
    CHECK(rig->data);
    for (uint32_t i = 0; i < LOG_RIG_SLOTS; i++)
        rig->slot[i].data = rig->data + (size_t)i * LOG_RIG_WRITE_PAGES * PAGE;
    CHECK_EQUAL(isw_log_file_bytes(size_bytes, &file_bytes), 0);
    log_disk_open(&rig->disk, file_bytes, (struct chance){chance_next(&rig->chance)});
    rig->disk.sync_failed = doubt;
    rig->disk.owner = rig;
    log_oracle_open(&rig->oracle, size_bytes / PAGE);
    CHECK_EQUAL(isw_log_format(rig->disk.fd, size_bytes), 0);
    for (uint64_t block = 0; block < rig->disk.blocks; block++) /* written and synced, it says */
        CHECK(!(rig->disk.flags[block] & LOG_BLOCK_DIRTY));
    CHECK(log_rig_start(rig, 0));
}

void log_rig_close(struct log_rig *rig)
{
    if (rig->backup)
        log_rig_kill(rig);
    log_oracle_close(&rig->oracle);
    log_disk_close(&rig->disk);
}
