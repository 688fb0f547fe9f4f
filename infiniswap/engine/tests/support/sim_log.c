#include "sim_log.h"

#include "fake_backup.h"
#include "log.h"

enum { PAGE = ISW_PAGE_BYTES, AGAIN_NS = 20000 };

static struct sim_log *of(struct backup *backup)
{
    return (struct sim_log *)backup;
}

/* ---- requests ---- */

static void copy_manners(struct sim_log *log)
{
    struct log_disk_manners *m = &log->disk.manners;
    const struct sim_disk_manners *book = &log->book->manners;
    *m = (struct log_disk_manners){.read_error_one_in = book->read_error_one_in,
                                   .write_error_one_in = book->write_error_one_in,
                                   .late_one_in = book->stall_one_in,
                                   .pieces_one_in = 8,
                                   .error = book->error};
}

/* A read of the log's that failed may be about any page. */
static void keep_book(struct sim_log *log)
{
    struct sim_disk *book = log->book;
    if (log->disk.read_faults != log->read_faults) {
        uint64_t order = book->order(book->order_owner);
        for (uint64_t page = 0; page < book->pages; page++)
            book->fault_order[page] = order;
        book->faults++;
    }
    if (log->disk.write_faults != log->write_faults) { /* and one of a write breaks the chain for whomever */
        uint64_t order = book->order(book->order_owner);
        for (uint64_t page = 0; page < book->pages; page++)
            book->fault_order[page] = order;
        book->change_fault_order = order;
        book->told(book->owner, "write of the log", 0, book->pages, log->disk.manners.error);
        book->faults++;
    }
    log->write_faults = log->disk.write_faults;
    log->read_faults = log->disk.read_faults;
    if (log->disk.state_syncs != log->state_syncs)
        book->state(book->owner, SIM_STATE_SYNCED);
    log->state_syncs = log->disk.state_syncs;
}

static void step(void *owner, uint64_t life)
{
    struct sim_log *log = owner;
    if (life != log->life || !log_disk_waiting(&log->disk))
        return;
    copy_manners(log);
    if (!log_disk_step(&log->disk)) /* the loop has not come to kick it */
        sim_at(log->system, log->system->now_ns + AGAIN_NS, step, log, life);
    keep_book(log);
}

static void submit(struct backup *backup, struct backup_request *r)
{
    struct sim_log *log = of(backup);
    sim_point(log->system);
    if (r->kind == BACKUP_SYNC_STATE)
        log->book->state(log->book->owner, SIM_STATE_BEGUN);
    log->inner->methods->submit(log->inner, r);
    bool sync = r->kind == BACKUP_SYNC || r->kind == BACKUP_SYNC_STATE;
    uint64_t most_ns = sync ? log->book->manners.sync_ns_max : log->book->manners.request_ns_max;
    sim_at(log->system, log->system->now_ns + 10000 + chance_below(&log->chance, most_ns), step, log, log->life);
}

static void kick(struct backup *backup)
{
    of(backup)->inner->methods->kick(of(backup)->inner);
}

static struct backup_request *reap(struct backup *backup)
{
    return of(backup)->inner->methods->reap(of(backup)->inner);
}

static void destroy(struct backup *backup)
{
    struct sim_log *log = of(backup);
    kick(backup);
    while (!log->disk.dead && log_disk_waiting(&log->disk)) /* as the real ones do */
        CHECK(sim_step(log->system, UINT64_MAX));
    log->life++;
    log->inner->methods->destroy(log->inner);
    log->inner = NULL;
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, backup_image_wants, NULL, NULL, NULL, NULL};

/* ---- its life ---- */

static struct backup *create(struct backup *backup, uint32_t capacity)
{
    struct sim_log *log = of(backup);
    CHECK(capacity <= LOG_DISK_QUEUE);
    log->inner = log_disk_start(&log->disk);
    log->base = (struct backup){&methods, log->inner->engine, log->inner->event_fd, log->inner->fd, log->inner->sparse, 0};
    return &log->base;
}

void sim_log_install(struct sim_log *log)
{
    fake_backup_install((struct fake_backup){create, &log->base});
}

void sim_log_open(struct sim_log *log, struct sim_disk *book, uint64_t size_bytes, struct chance chance)
{
    uint64_t file_bytes;
    *log = (struct sim_log){.book = book, .system = book->system, .chance = chance, .used = true};
    CHECK_EQUAL(isw_log_file_bytes(size_bytes, &file_bytes), 0);
    log_disk_open(&log->disk, file_bytes, (struct chance){chance_next(&log->chance)});
    CHECK_EQUAL(isw_log_format(log->disk.fd, size_bytes), 0);
}

void sim_log_close(struct sim_log *log)
{
    CHECK(!log->log);
    log_disk_close(&log->disk);
}

static isw_log *open_it(struct sim_log *log, uint32_t flags)
{
    char error[256] = "";
    struct log_disk_manners quiet = {.error = 5};
    log->disk.manners = quiet;
    log->system->aside = true;
    isw_log *opened = isw_log_open(log->disk.fd, flags, error, sizeof error);
    log->system->aside = false;
    if (!opened)
        FAIL("the log cannot be opened: %s", error);
    return opened;
}

/* So few segments are left that the cleaner has to work: what a life writes is not much. */
static void make_scarce(isw_log *log)
{
    for (uint32_t i = 0; i < log->geometry.segments && log->free_segments > 2 * LOG_KEPT_FOR_CLEANING; i++)
        if (log->segment[i].state == LOG_FREE) {
            log->segment[i].state = LOG_NEXT; /* of nobody */
            log->free_segments--;
        }
}

isw_log *sim_log_start(struct sim_log *log, bool same_boot)
{
    CHECK(!log->log);
    log->disk.dead = false;
    log->log = open_it(log, same_boot ? ISW_LOG_SAME_BOOT : 0);
    make_scarce(log->log);
    return log->log;
}

static void close_it(struct sim_log *log)
{
    log->borrowed += log->log->borrowed_pages;
    isw_log_close(log->log);
    log->log = NULL;
}

void sim_log_stop(struct sim_log *log)
{
    close_it(log);
}

void sim_log_killed(struct sim_log *log)
{
    log_disk_kill(&log->disk);
    log->life++;
    if (log->log)
        close_it(log);
}

void sim_log_power_cut(struct sim_log *log)
{
    log_disk_power_cut(&log->disk);
}

bool sim_log_has(const struct sim_log *log, uint64_t page)
{
    uint64_t first, end;
    return isw_log_extent(log->log, page, &first, &end) && first == page;
}

void sim_log_durable(struct sim_log *log, uint8_t *image)
{
    isw_log *seen = open_it(log, ISW_LOG_READ_ONLY);
    for (uint64_t page = 0; page < log->book->pages; page++) {
        uint32_t place = seen->place[page];
        memset(image + page * PAGE, place == LOG_PLACE_BAD ? 0xee : 0, PAGE);
        if (place && place != LOG_PLACE_BAD)
            memcpy(image + page * PAGE, log->disk.durable + log_place_offset(seen, place), PAGE);
    }
    isw_log_close(seen);
}
