/* Proves: what is written is read again, through every kind of place a page can be in, at any alignment; the image is the
 * device afterwards. */
#include "rig.h"

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES };

TEST_ON_BOTH(write_read_unmapped)
{
    struct rig rig;
    struct client c;
    static uint8_t out[SIZE], in[SIZE];
    struct chance chance = chance_start(0);
    for (uint32_t i = 0; i < SIZE; i++)
        out[i] = (uint8_t)chance_next(&chance);
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 0, SIZE, out, NULL), 0);
    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, 0, SIZE, NULL, in), 0);
    CHECK(!memcmp(in, out, SIZE));
    client_close(&c);
    rig_stop(&rig);
    rig_image(&rig, in);
    CHECK(!memcmp(in, out, SIZE));
    rig_end(&rig);
}

/* READs of several pieces are answered whole, many at once, at any alignment, in either kind of reply. */
TEST_ON_BOTH(large_reads_at_once)
{
    enum { READS = 24, LARGEST = 1280 << 10 };
    static uint8_t out[SIZE], in[READS][LARGEST];
    struct chance chance = chance_start(3);
    for (uint32_t i = 0; i < SIZE; i++)
        out[i] = (uint8_t)(i / PAGE * 7 + i);
    for (uint32_t structured = 0; structured < 2; structured++) {
        struct rig rig;
        struct client c;
        rig_prepare(&rig, SIZE);
        rig_start(&rig);
        rig_connect(&rig, &c, structured);
        CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 0, SIZE, out, NULL), 0);
        for (uint32_t round = 0; round < 10; round++) {
            uint32_t at[READS], bytes[READS];
            for (uint32_t i = 0; i < READS; i++) {
                bytes[i] = chance_in(&chance, 2) ? LARGEST : 1 + (uint32_t)chance_below(&chance, LARGEST);
                at[i] = (uint32_t)chance_below(&chance, SIZE - bytes[i] + 1);
                CHECK(client_send(&c, NBD_CMD_READ, 0, at[i], bytes[i], NULL, in[i]));
            }
            client_settle(&c);
            for (uint32_t i = 0; i < READS; i++)
                CHECK(!memcmp(in[i], out + at[i], bytes[i]));
        }
        client_close(&c);
        rig_stop(&rig);
        rig_end(&rig);
    }
}

/* The pieces of a long simple reply carry no headers: another reply between them would be taken for data. */
TEST_ON_BOTH(long_simple_reads_stay_whole)
{
    struct rig rig;
    struct client c;
    static uint8_t out[SIZE], in[SIZE], small[8][PAGE];
    for (uint32_t i = 0; i < SIZE; i++)
        out[i] = (uint8_t)(i / PAGE + i);
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 0, SIZE, out, NULL), 0);
    for (uint32_t round = 0; round < 20; round++) {
        memset(in, 0, SIZE);
        for (uint32_t i = 0; i < 8; i++) {
            if (i % 4 == 2)
                CHECK(client_send(&c, NBD_CMD_READ, 0, 0, SIZE, NULL, in));
            CHECK(client_send(&c, NBD_CMD_READ, 0, i * PAGE, PAGE, NULL, small[i]));
            CHECK(client_send(&c, NBD_CMD_READ, 0, SIZE, PAGE, NULL, small[i])); /* answered with an error, at once */
        }
        client_settle(&c);
        CHECK(!memcmp(in, out, SIZE));
        for (uint32_t i = 0; i < 8; i++)
            CHECK(!memcmp(small[i], out + i * PAGE, PAGE));
    }
    client_close(&c);
    rig_stop(&rig);
    rig_end(&rig);
}
