/* Proves for the memory server: clients of several threads read what they wrote while slabs come and go under them; when a
 * slab or an export is taken away no thread touches its memory any more, replies half sent included; what is not mapped is
 * refused; TRIM clears and frees. */
#include "fake_backup.h"
#include "nbd_client.h"
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLAB = 1 << 20, SLABS = 8, PAGE = ISW_PAGE_BYTES, CLIENTS = 4, SLAB_PAGES = SLAB / PAGE };

static isw_memory *start(uint32_t threads)
{
    struct isw_memory_config config = {
        .threads = threads, .exports_max = 4, .connections_max = 16, .client_stall_timeout_ms = 30000};
    char error[256] = "";
    isw_memory *memory = isw_memory_start(&config, error, sizeof error);
    if (!memory)
        FAIL("%s", error);
    return memory;
}

static uint32_t open_export(isw_memory *memory)
{
    int number = isw_memory_export_open(memory, SLAB, SLABS);
    CHECK(number >= 0);
    return (uint32_t)number;
}

static void connect_to(isw_memory *memory, uint32_t number, struct client *client, bool structured, bool small)
{
    int fds[2];
    stream_pair(fds, false, small);
    uint32_t flags = structured ? ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION : 0;
    CHECK_EQUAL(isw_memory_connection_add(memory, number, fds[1], flags, NULL, 0), 0);
    client_open(client, fds[0], structured);
}

/* Each mapping of a slab is memory of its own, unmapped afterwards: whoever still touches it dies. */
static void *new_slab(void)
{
    void *slab = mmap(NULL, SLAB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(slab != MAP_FAILED);
    return slab;
}

struct user { /* a thread with a connection, and pages that are nobody else's: every CLIENTS-th of each slab */
    isw_memory *memory;
    uint32_t number, index;
    bool structured;
    struct chance chance;
    uint32_t *mapped; /* how often each slab has been mapped: contents last one mapping */
    uint64_t served, refused, ended;
    bool ending;
};

static pthread_mutex_t control = PTHREAD_MUTEX_INITIALIZER; /* the engine is called by one thread at a time */

static void *use(void *argument)
{
    struct user *u = argument;
    static _Thread_local uint8_t value[SLABS * SLAB_PAGES], page[PAGE], in[PAGE];
    static _Thread_local uint32_t written_in[SLABS * SLAB_PAGES]; /* mapping + 1 */
    struct client client = {.fd = -1};
    while (!__atomic_load_n(&u->ending, __ATOMIC_RELAXED)) {
        if (client.fd < 0) {
            pthread_mutex_lock(&control);
            connect_to(u->memory, u->number, &client, u->structured, false);
            pthread_mutex_unlock(&control);
        }
        uint32_t slab = (uint32_t)chance_below(&u->chance, SLABS);
        uint32_t number = slab * SLAB_PAGES + (uint32_t)chance_below(&u->chance, SLAB_PAGES / CLIENTS) * CLIENTS + u->index;
        uint32_t before = __atomic_load_n(&u->mapped[slab], __ATOMIC_ACQUIRE);
        uint16_t command = (uint16_t[]){NBD_CMD_READ, NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM}[chance_below(&u->chance, 4)];
        uint8_t byte = (uint8_t)chance_next(&u->chance);
        memset(page, byte, PAGE);
        struct call *call = client_send(&client, command, 0, (uint64_t)number * PAGE, PAGE, page, in);
        CHECK(call);
        while (client.calls_out && !client.ended)
            clients_pump(&client, 1, 1000);
        uint32_t after = __atomic_load_n(&u->mapped[slab], __ATOMIC_ACQUIRE), error = call->error;
        if (client.ended) { /* a reply was being sent from a slab that was taken away */
            client_close(&client);
            u->ended++;
            written_in[number] = 0;
            continue;
        }
        CHECK(error == 0 || error == NBD_ESHUTDOWN);
        u->refused += error != 0;
        u->served += error == 0;
        if (command == NBD_CMD_READ && !error && before == after && written_in[number] == after + 1)
            CHECK(in[0] == value[number] && in[PAGE - 1] == value[number]);
        if (command != NBD_CMD_READ) {
            written_in[number] = !error && before == after ? after + 1 : 0;
            value[number] = command == NBD_CMD_WRITE ? byte : 0;
        }
    }
    client_close(&client);
    return NULL;
}

TEST(slabs_come_and_go_under_load)
{
    isw_memory *memory = start(3);
    uint32_t number = open_export(memory), mapped[SLABS] = {0};
    struct chance chance = chance_start(1);
    struct user user[CLIENTS];
    pthread_t thread[CLIENTS];
    void *slab[SLABS] = {NULL};
    for (uint32_t i = 0; i < CLIENTS; i++)
        user[i] = (struct user){.memory = memory, .number = number, .index = i, .structured = i % 2, .mapped = mapped,
                                .chance = chance_start(10 + i)};
    for (uint32_t i = 0; i < CLIENTS; i++)
        CHECK(pthread_create(&thread[i], NULL, use, &user[i]) == 0);
    for (uint64_t i = 0; i < scaled(2000); i++) {
        uint32_t which = (uint32_t)chance_below(&chance, SLABS);
        pthread_mutex_lock(&control);
        if (slab[which]) {
            CHECK_EQUAL(isw_memory_slab_map(memory, number, which, slab[which], -1, 0), -EEXIST);
            CHECK_EQUAL(isw_memory_slab_unmap(memory, number, which), 0);
            __atomic_add_fetch(&mapped[which], 1, __ATOMIC_RELEASE);
            munmap(slab[which], SLAB);
            slab[which] = NULL;
        } else {
            slab[which] = new_slab();
            __atomic_add_fetch(&mapped[which], 1, __ATOMIC_RELEASE);
            CHECK_EQUAL(isw_memory_slab_map(memory, number, which, slab[which], -1, 0), 0);
        }
        pthread_mutex_unlock(&control);
        pause_us((uint32_t)chance_below(&chance, 300));
    }
    uint64_t served = 0, refused = 0;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        __atomic_store_n(&user[i].ending, true, __ATOMIC_RELAXED);
        pthread_join(thread[i], NULL);
        served += user[i].served;
        refused += user[i].refused;
    }
    CHECK(served > 100 && refused > 100);
    isw_memory_stop(memory);
    for (uint32_t i = 0; i < SLABS; i++)
        if (slab[i])
            munmap(slab[i], SLAB);
}

/* Replies that are queued but not sent refer to the slab itself: taking it away ends such connections, and only these. */
TEST(half_sent_replies)
{
    isw_memory *memory = start(2);
    uint32_t number = open_export(memory);
    void *slabs[2] = {new_slab(), new_slab()};
    struct client lazy, other;
    static uint8_t in[SLAB], page[PAGE];
    for (uint32_t i = 0; i < 2; i++)
        CHECK_EQUAL(isw_memory_slab_map(memory, number, i, slabs[i], -1, 0), 0);
    connect_to(memory, number, &lazy, false, true);
    connect_to(memory, number, &other, true, false);
    CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, 0, PAGE, NULL, page), 0);
    CHECK(client_send(&lazy, NBD_CMD_READ, 0, 0, SLAB, NULL, in));
    lazy.receive_most = 1; /* sends, and reads next to nothing */
    client_pump(&lazy);
    uint32_t count;
    const uint64_t *counters = isw_memory_counters(memory, &count);
    WAIT_UNTIL(__atomic_load_n(&counters[ISW_MEMORY_read_requests], __ATOMIC_RELAXED) >= 2);
    CHECK_EQUAL(isw_memory_slab_unmap(memory, number, 0), 0);
    munmap(slabs[0], SLAB);
    WAIT_UNTIL(isw_memory_export_connections(memory, number) == 1);
    CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, 0, PAGE, NULL, page), NBD_ESHUTDOWN);
    CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, SLAB, PAGE, NULL, page), 0);
    client_close(&lazy);
    client_close(&other);
    isw_memory_stop(memory);
    munmap(slabs[1], SLAB);
}

TEST(what_is_not_mapped_is_refused)
{
    isw_memory *memory = start(1);
    uint32_t number = open_export(memory);
    void *slab = new_slab();
    struct client c;
    static uint8_t data[3 * SLAB];
    CHECK_EQUAL(isw_memory_slab_map(memory, number, 1, slab, -1, 0), 0);
    CHECK_EQUAL(isw_memory_slab_map(memory, number, SLABS, slab, -1, 0), -EINVAL);
    CHECK_EQUAL(isw_memory_slab_map(memory, 99, 0, slab, -1, 0), -ENOENT);
    CHECK_EQUAL(isw_memory_slab_unmap(memory, number, 0), -ENOENT);
    connect_to(memory, number, &c, true, false);
    static const uint16_t commands[] = {NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES};
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQUAL(client_call(&c, commands[i], 0, 0, PAGE, data, data), NBD_ESHUTDOWN);
        CHECK_EQUAL(client_call(&c, commands[i], 0, SLAB - PAGE, 2 * PAGE, data, data), NBD_ESHUTDOWN); /* in part */
        CHECK_EQUAL(client_call(&c, commands[i], 0, SLAB, SLAB + 1, data, data), NBD_ESHUTDOWN);
        CHECK_EQUAL(client_call(&c, commands[i], 0, SLAB, SLAB, data, data), 0);
    }
    CHECK_EQUAL(client_call(&c, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    CHECK_EQUAL(client_call(&c, NBD_CMD_CACHE, 0, 0, PAGE, NULL, NULL), 0);
    CHECK_EQUAL(client_call(&c, NBD_CMD_BLOCK_STATUS, 0, 0, 3 * SLAB, NULL, data), 0);
    CHECK(nbd_get32(data) == SLAB && nbd_get32(data + 4) == NBD_STATE_HOLE);
    CHECK(nbd_get32(data + 8) == SLAB && nbd_get32(data + 12) == 0);
    CHECK(nbd_get32(data + 16) == SLAB && nbd_get32(data + 20) == NBD_STATE_HOLE);
    client_close(&c);
    isw_memory_stop(memory);
    munmap(slab, SLAB);
}

/* READs and WRITEs of memory that is there show that a lease is in use; nothing else does, and a new export begins at none. */
TEST(requests_of_an_export_are_counted)
{
    isw_memory *memory = start(2);
    uint32_t number = open_export(memory), other = open_export(memory);
    void *slab = new_slab();
    struct client c;
    static uint8_t data[2 * PAGE];
    CHECK_EQUAL(isw_memory_slab_map(memory, number, 1, slab, -1, 0), 0);
    connect_to(memory, number, &c, true, false);
    static const uint16_t commands[] = {NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_FLUSH, NBD_CMD_BLOCK_STATUS};
    static const int64_t counted[] = {1, 2, 2, 2, 2};
    for (uint32_t i = 0; i < 5; i++) {
        uint32_t bytes = commands[i] == NBD_CMD_FLUSH ? 0 : 2 * PAGE;
        CHECK_EQUAL(client_call(&c, commands[i], 0, bytes ? SLAB : 0, bytes, data, data), 0);
        CHECK_EQUAL(isw_memory_export_requests(memory, number), counted[i]);
    }
    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, 0, PAGE, NULL, data), NBD_ESHUTDOWN);
    CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 0, PAGE, data, NULL), NBD_ESHUTDOWN);
    CHECK_EQUAL(isw_memory_export_requests(memory, number), 2);
    CHECK_EQUAL(isw_memory_export_requests(memory, other), 0);
    CHECK_EQUAL(isw_memory_export_close(memory, number), 0);
    CHECK_EQUAL(isw_memory_export_requests(memory, number), -ENOENT);
    CHECK_EQUAL(open_export(memory), number);
    CHECK_EQUAL(isw_memory_export_requests(memory, number), 0);
    client_close(&c);
    isw_memory_stop(memory);
    munmap(slab, SLAB);
}

/* TRIM gives pages of the memfd back; without one, or where the file system does not know how, it zeroes. */
TEST(trim_clears_and_frees)
{
    isw_memory *memory = start(1);
    uint32_t number = open_export(memory);
    struct client c;
    int fd;
    static uint8_t data[SLAB];
    uint8_t *slabs = shared_memory(2 * SLAB, &fd);
    connect_to(memory, number, &c, false, false);
    CHECK_EQUAL(isw_memory_slab_map(memory, number, 0, slabs, fd, 0), 0);
    CHECK_EQUAL(isw_memory_slab_map(memory, number, 1, slabs + SLAB, fd, SLAB), 0);
    for (int way = 0; way < 3; way++) {
        uint16_t command = way == 1 ? NBD_CMD_WRITE_ZEROES : NBD_CMD_TRIM, flags = way == 1 ? NBD_CMD_FLAG_NO_HOLE : 0;
        struct stat before, after;
        fake_fallocate_error = way == 2 ? EOPNOTSUPP : 0;
        memset(data, 0x11, SLAB);
        CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 0, SLAB, data, NULL), 0);
        CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, SLAB, SLAB, data, NULL), 0);
        CHECK(fstat(fd, &before) == 0);
        CHECK_EQUAL(client_call(&c, command, flags, SLAB - 100 * PAGE - 7, 200 * PAGE + 14, NULL, NULL), 0);
        CHECK(fstat(fd, &after) == 0);
        CHECK_EQUAL(before.st_blocks - after.st_blocks, way == 0 ? 200 * PAGE / 512 : 0);
        for (uint32_t i = 0; i < 2 * SLAB; i++) {
            bool inside = i >= SLAB - 100 * PAGE - 7 && i < SLAB + 100 * PAGE + 7;
            CHECK_EQUAL(slabs[i], inside ? 0 : 0x11);
        }
    }
    fake_fallocate_error = 0;
    client_close(&c);
    isw_memory_stop(memory);
    munmap(slabs, 2 * SLAB);
    close(fd);
}

struct stream { /* a client that never stops */
    struct client client;
    bool ended;
};

static void *stream_reads(void *argument)
{
    struct stream *s = argument;
    static _Thread_local uint8_t data[16][64 * PAGE];
    while (!s->client.ended) {
        while (s->client.calls_out < 16)
            CHECK(client_send(&s->client, s->client.generation % 3 ? NBD_CMD_READ : NBD_CMD_WRITE, 0,
                              s->client.generation % 4 * 64 * PAGE, 64 * PAGE, data[0], data[s->client.generation % 16]));
        clients_pump(&s->client, 1, 1000);
    }
    client_close(&s->client);
    return NULL;
}

/* Closing an export ends its connections, not those of another; then its memory is nobody's. */
TEST(export_closes_under_load)
{
    for (uint64_t round = 0; round < scaled(12); round++) {
        isw_memory *memory = start(2);
        uint32_t numbers[2] = {open_export(memory), open_export(memory)};
        void *slabs[2] = {new_slab(), new_slab()};
        static struct stream streams[4];
        pthread_t thread[4];
        for (uint32_t i = 0; i < 2; i++)
            CHECK_EQUAL(isw_memory_slab_map(memory, numbers[i], 0, slabs[i], -1, 0), 0);
        for (uint32_t i = 0; i < 4; i++) /* one connection of each export on each thread: what they move is not compared */
            connect_to(memory, numbers[i / 2], &streams[i].client, i % 2, i == 1);
        /* Two that write and read the same memory from two threads would be a race of their own making. */
        CHECK(pthread_create(&thread[0], NULL, stream_reads, &streams[0]) == 0);
        CHECK(pthread_create(&thread[2], NULL, stream_reads, &streams[2]) == 0);
        pause_us(20000);
        CHECK_EQUAL(isw_memory_export_close(memory, numbers[0]), 0);
        munmap(slabs[0], SLAB);
        pthread_join(thread[0], NULL);
        CHECK_EQUAL(isw_memory_export_close(memory, numbers[0]), -ENOENT);
        CHECK_EQUAL(isw_memory_export_connections(memory, numbers[1]), 2);
        client_close(&streams[1].client);
        isw_memory_stop(memory); /* ends the rest, under load too */
        pthread_join(thread[2], NULL);
        client_close(&streams[3].client);
        munmap(slabs[1], SLAB);
    }
}

/* The largest READs there are, one behind the other, over the smallest slabs: as many pieces as an answer can have. */
TEST(answers_in_the_most_pieces)
{
    enum { LEAST = 1 << 17, COUNT = ISW_REQUEST_BYTES_MAX / LEAST + 1 };
    isw_memory *memory = start(1);
    CHECK_EQUAL(isw_memory_export_open(memory, LEAST / 2, COUNT), -EINVAL);
    int number = isw_memory_export_open(memory, LEAST, COUNT), fd;
    uint8_t *slabs = shared_memory((uint64_t)COUNT * LEAST, &fd), *in = malloc(ISW_REQUEST_BYTES_MAX);
    struct client c;
    CHECK(number >= 0 && in);
    for (uint32_t i = 0; i < COUNT; i++) {
        memset(slabs + (uint64_t)i * LEAST, (int)i, LEAST);
        CHECK_EQUAL(isw_memory_slab_map(memory, (uint32_t)number, i, slabs + (uint64_t)i * LEAST, fd, (uint64_t)i * LEAST), 0);
    }
    connect_to(memory, (uint32_t)number, &c, false, false);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 6; i++)
            CHECK(client_send(&c, NBD_CMD_READ, 0, LEAST / 2, ISW_REQUEST_BYTES_MAX, NULL, in));
        client_settle(&c);
        CHECK(!c.ended && !memcmp(in, slabs + LEAST / 2, ISW_REQUEST_BYTES_MAX));
    }
    client_close(&c);
    isw_memory_stop(memory);
    munmap(slabs, (uint64_t)COUNT * LEAST);
    close(fd);
    free(in);
}

/* At the limits: refused, not grown; and what was given back can be had again. */
TEST(limits)
{
    isw_memory *memory = start(1);
    char error[256];
    struct isw_memory_config wrong = {.threads = 0, .exports_max = 1, .connections_max = 1};
    CHECK(isw_memory_start(&wrong, error, sizeof error) == NULL && strlen(error) > 10);
    CHECK_EQUAL(isw_memory_export_open(memory, SLAB, 0), -EINVAL);
    CHECK_EQUAL(isw_memory_export_open(memory, SLAB + PAGE, 1), -EINVAL);
    for (uint32_t round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++)
            CHECK_EQUAL(isw_memory_export_open(memory, SLAB, 1), i);
        CHECK_EQUAL(isw_memory_export_open(memory, SLAB, 1), -ENFILE);
        struct client clients[16];
        for (uint32_t i = 0; i < 16; i++)
            connect_to(memory, i % 4, &clients[i], false, false);
        int fds[2];
        stream_pair(fds, false, false);
        CHECK_EQUAL(isw_memory_connection_add(memory, 0, fds[1], 0, NULL, 0), -EMFILE);
        uint8_t byte;
        CHECK_EQUAL(read(fds[0], &byte, 1), 0); /* and closed */
        close(fds[0]);
        for (uint32_t i = 0; i < 16; i++)
            client_close(&clients[i]);
        for (uint32_t i = 0; i < 4; i++)
            CHECK_EQUAL(isw_memory_export_close(memory, i), 0);
    }
    CHECK_EQUAL(isw_memory_connection_add(memory, 0, dup(0), 0, NULL, 0), -ENOENT);
    isw_memory_stop(memory);
}

/* Zeroing a lot for one device is done in pieces: another one's read is answered meanwhile, and what was sent behind the zeroes lands
 * behind them.  Several tries, since this thread may be kept from looking for as long as it takes. */
TEST(zeroes_leave_turns_to_others)
{
    enum { WIDE = 128 << 20 };
    isw_memory *memory = start(1);
    struct client c, other;
    static uint8_t data[PAGE], in[PAGE];
    bool seen = false;
    uint32_t count;
    void *wide = mmap(NULL, WIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(wide != MAP_FAILED);
    memset(data, 7, PAGE);
    int number = isw_memory_export_open(memory, WIDE, 1);
    CHECK(number >= 0);
    CHECK_EQUAL(isw_memory_slab_map(memory, (uint32_t)number, 0, wide, -1, 0), 0);
    connect_to(memory, (uint32_t)number, &c, true, false);
    connect_to(memory, (uint32_t)number, &other, true, false);
    for (uint32_t attempt = 0; attempt < 10 && !seen; attempt++) {
        uint64_t before = isw_memory_counters(memory, &count)[ISW_MEMORY_trim_requests];
        CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, PAGE, PAGE, data, NULL), 0);
        struct call *zeroes = client_send(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, WIDE, NULL, NULL);
        CHECK(client_send(&c, NBD_CMD_WRITE, 0, WIDE - PAGE, PAGE, data, NULL));
        WAIT_UNTIL((client_pump(&c), __atomic_load_n(&isw_memory_counters(memory, &count)[ISW_MEMORY_trim_requests], __ATOMIC_RELAXED) > before));
        CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, 0, PAGE, NULL, in), 0);
        client_pump(&c);
        seen = zeroes->used;
        client_settle(&c);
        CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, WIDE - PAGE, PAGE, NULL, in), 0);
        CHECK(!memcmp(in, data, PAGE));
        CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, PAGE, PAGE, NULL, in), 0);
        CHECK(in[0] == 0 && in[PAGE - 1] == 0);
    }
    CHECK(seen);
    client_close(&c);
    client_close(&other);
    isw_memory_stop(memory);
    munmap(wide, WIDE);
}
