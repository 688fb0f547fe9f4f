/* Proves that page-ins come first: at a peer whose page-outs are stuck, and where the backup has no place left for anybody. */
#include "fake_backup.h"
#include "rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, SLAB_PAGES = (1 << 20) / PAGE, STUCK = 200 };

/* Carries bytes between the device and a donor, until it stands still. */
struct relay {
    int end[2];
    atomic_bool stands, over;
    pthread_t thread;
};

static void carry(int from, int to)
{
    static uint8_t bytes[65536];
    ssize_t got = read(from, bytes, sizeof bytes);
    for (ssize_t at = 0, sent; at < got; at += sent)
        if ((sent = write(to, bytes + at, (size_t)(got - at))) <= 0)
            return;
}

static void *run_relay(void *argument)
{
    struct relay *relay = argument;
    while (!atomic_load(&relay->over)) {
        struct pollfd fds[2] = {{relay->end[0], POLLIN, 0}, {relay->end[1], POLLIN, 0}};
        if (atomic_load(&relay->stands)) {
            pause_us(1000);
            continue;
        }
        poll(fds, 2, 1);
        for (uint32_t i = 0; i < 2; i++)
            if (fds[i].revents & POLLIN)
                carry(relay->end[i], relay->end[!i]);
    }
    close(relay->end[0]);
    close(relay->end[1]);
    return NULL;
}

TEST(stuck_page_outs_hold_up_no_page_in)
{
    static uint8_t data[PAGE], in[PAGE];
    static struct rig rig;
    struct donor donor;
    struct client client, reader;
    static struct relay relay;
    int fds[2];
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    donor_open(&donor, SIZE, 1 << 20);
    stream_pair(fds, true, false);
    relay = (struct relay){.end = {fds[1], donor_connect(&donor)}};
    CHECK(pthread_create(&relay.thread, NULL, run_relay, &relay) == 0);
    CHECK_EQUAL(isw_device_peer_attach(rig.device, 0, donor_connect(&donor), fds[0]), 0);
    CHECK_EQUAL(isw_device_slab_map(rig.device, 0, 0, 0), 0);
    rig_connect(&rig, &client, true);
    rig_connect(&rig, &reader, true);
    memset(data, 7, PAGE);
    CHECK_EQUAL(client_call(&client, NBD_CMD_WRITE, 0, 0, PAGE, data, NULL), 0);
    rig_await_backup(&rig); /* else the read would be answered from the pending buffer */
    atomic_store(&relay.stands, true);
    for (uint32_t i = 1; i <= STUCK; i++)
        CHECK(client_send(&client, NBD_CMD_WRITE, 0, i * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&client, 1, 0), rig_counter(&rig, ISW_DEVICE_in_flight) == STUCK));
    uint64_t remote = rig_counter(&rig, ISW_DEVICE_reads_remote_pages);
    CHECK_EQUAL(client_call(&reader, NBD_CMD_READ, 0, 0, PAGE, NULL, in), 0);
    CHECK(memcmp(in, data, PAGE) == 0);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_reads_remote_pages), remote + 1);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_in_flight), STUCK);
    atomic_store(&relay.stands, false);
    client_settle(&client);
    client_close(&client);
    client_close(&reader);
    rig_stop(&rig);
    atomic_store(&relay.over, true);
    CHECK(pthread_join(relay.thread, NULL) == 0);
    donor_close(&donor);
    rig_end(&rig);
}

/* Nothing is mapped: writes go to the backup themselves, more than it takes at a time, and none of them ends. */
TEST_ON_BOTH(full_disk_queue_has_room_for_page_ins)
{
    enum { WRITES = 300 };
    static uint8_t data[PAGE], in[PAGE];
    static struct rig rig;
    struct client client, reader;
    rig_prepare(&rig, SIZE);
    struct fake_disk *disk = fake_disk_open(&rig, 7);
    struct fake_manners *manners = fake_disk_manners(disk);
    fake_disk_install(disk);
    rig_start(&rig);
    rig_connect(&rig, &client, true);
    rig_connect(&rig, &reader, true);
    memset(data, 7, PAGE);
    CHECK_EQUAL(client_call(&client, NBD_CMD_WRITE, 0, 0, PAGE, data, NULL), 0);
    atomic_store(&manners->hold_writes, true);
    for (uint32_t i = 1; i <= WRITES; i++)
        CHECK(client_send(&client, NBD_CMD_WRITE, 0, i * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&client, 1, 0), rig_counter(&rig, ISW_DEVICE_in_flight) == WRITES));
    CHECK_EQUAL(client_call(&reader, NBD_CMD_READ, 0, 0, PAGE, NULL, in), 0);
    CHECK(memcmp(in, data, PAGE) == 0);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_in_flight), WRITES);
    atomic_store(&manners->hold_writes, false);
    client_settle(&client);
    client_close(&client);
    client_close(&reader);
    rig_stop(&rig);
    fake_disk_close(disk);
    rig_end(&rig);
}
