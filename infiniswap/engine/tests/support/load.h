/* Random requests of several clients at once, each answer checked against the model. */
#ifndef LOAD_H
#define LOAD_H

#include "fake_backup.h"
#include "model.h"
#include "rig.h"

enum { LOAD_CLIENTS = 4 };

struct load {
    struct rig *rig;
    struct fake_disk *disk; /* NULL: none, and FLUSH is not looked at */
    struct model model;
    struct chance chance;
    struct client client[LOAD_CLIENTS];
    uint32_t clients;
    uint32_t out, out_max; /* requests */
    bool errors_allowed;   /* requests may be answered with an error; what they did is then unknown */
    bool ends_allowed;     /* connections may end */
    uint32_t read_percent;
    bool along;            /* most reads go along pages a step apart, past those that are written most */
    struct load_stream {
        uint64_t page, left, step;
    } stream[LOAD_CLIENTS];
    uint64_t reads, writes, flushes, errors, ends, lost_pages;
    uint8_t *scratch; /* size of the device */
};

void load_open(struct load *load, struct rig *rig, struct fake_disk *disk, uint64_t chance_number);
/* Sends requests while fewer than out_max are out, takes answers. */
void load_step(struct load *load);
/* Waits for all answers. */
void load_settle(struct load *load);
/* Reads everything through the device; nothing may be out. */
void load_read_all(struct load *load);
/* After a disconnect: what was out is answered by nobody. */
void load_forget(struct load *load);
/* Closes the clients; the model stays. */
void load_disconnect(struct load *load);
void load_close(struct load *load);

#endif
