/* A memory daemon under the test's control: it answers late, out of order, wrongly, twice, in part or never.
 * One thread serves all its connections; its memory outlives them. */
#ifndef FAKE_PEER_H
#define FAKE_PEER_H

#include "rig.h"

#include <stdatomic.h>

struct peer_manners { /* one_in: 0 is never */
    atomic_uint delay_us_max;  /* each answer waits between nothing and this; longer ones are overtaken */
    atomic_uint late_one_in, late_us; /* such an answer comes so much later still */
    atomic_uint error_one_in, error; /* error: as on the wire */
    atomic_uint corrupt_read_one_in, corrupt_write_one_in; /* a bit is turned, on the way out or in memory */
    atomic_uint swallow_one_in;   /* never answered */
    atomic_uint garbage_one_in;   /* bytes that are no reply */
    atomic_uint duplicate_one_in; /* answered twice */
    atomic_uint cookie_one_in;    /* answered with a cookie that nobody sent */
    atomic_uint close_one_in;     /* the connection ends in the middle of the answer */
    atomic_uint early_one_in;     /* a WRITE is answered before its payload is here */
    atomic_bool deaf;             /* nothing is read, nothing is answered */
    atomic_bool mute;             /* requests are carried out, no answer is sent */
};

struct fake_peer;

struct fake_peer *fake_peer_open(uint64_t size_bytes, uint64_t chance_number);
void fake_peer_close(struct fake_peer *peer);
struct peer_manners *fake_peer_manners(struct fake_peer *peer);
/* Two new connections for the device. */
void fake_peer_attach(struct fake_peer *peer, struct rig *rig, uint32_t number);
/* Requests that were received whole. */
uint64_t fake_peer_requests(struct fake_peer *peer);
/* Answers that wait. */
uint32_t fake_peer_waiting(struct fake_peer *peer);
/* Ends all its connections. */
void fake_peer_hang_up(struct fake_peer *peer);
/* A byte of its memory. */
uint8_t fake_peer_byte(struct fake_peer *peer, uint64_t at);

#endif
