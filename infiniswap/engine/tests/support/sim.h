/* A whole world in one thread, from one seed: the engine's real sources on a simulated operating system, a disk, peers and
 * clients that misbehave, and a history of lives.  What the device may answer is the oracle's affair; what its memory
 * may look like between two turns of the loop, sim_check.c's. */
#ifndef SIM_H
#define SIM_H

#include "sim_disk.h"
#include "sim_log.h"
#include "sim_oracle.h"
#include "sim_peer.h"

enum {
    SIM_CLIENTS = 3,
    SIM_REQUESTS = 6, /* of one client, out at once: all together fewer than SIM_CANDIDATES */
    SIM_WINDOWS = 4,  /* places where most happens, so that requests meet */
    SIM_WRITE_SECTORS_MAX = 70 * SIM_PAGE_SECTORS,
    SIM_READ_SECTORS_MAX = 140 * SIM_PAGE_SECTORS,
};

/* Kinds of trouble, each of which a seed has or has not; a failed seed shrinks by leaving them out one by one. */
enum sim_trouble {
    SIM_DISK_READS, SIM_DISK_WRITES, SIM_DISK_FULL, SIM_DISK_SYNCS, SIM_DISK_DROPS, SIM_DISK_BAD, SIM_DISK_SLOW, SIM_DISK_STALLS,
    SIM_PEERS_LATE, SIM_PEERS_SILENT, SIM_PEERS_DIE, SIM_PEERS_REFUSE, SIM_PEERS_FLIP, SIM_PEERS_GARBAGE, SIM_PEERS_FORGET,
    SIM_PEERS_RESTART, SIM_PIECES, SIM_UNMAPS, SIM_MOVES, SIM_DETACHES, SIM_LEAVERS, SIM_KILLS, SIM_POWER_CUTS, SIM_STOPS_EARLY,
    SIM_KILLS_RECOVERY,
    SIM_TROUBLES,
};
extern const char *const sim_trouble_names[SIM_TROUBLES];

struct sim_options {
    bool log; /* the backup is one, and no image */
    uint64_t seed;
    uint64_t without;   /* troubles (1 << enum) that are left out */
    uint64_t operations_max; /* of the clients, all lives together */
    bool trace;
    bool sealed;   /* pages travel sealed */
    bool guesses;  /* every life prefetches */
    uint64_t page; /* whose flags are told with the trace */
    /* Instead of chance: the nth request to the disk, or to the peers, fails. */
    uint64_t disk_nth, peer_nth, peer_kind;
    const uint8_t *script; /* garbage that peers answer, from a fuzzer */
    size_t script_bytes;
};

struct sim_request {
    bool used;
    uint16_t command, flags;
    uint64_t sent, sent_ns, first, sectors;
    uint64_t told; /* flush_told, then */
    struct oracle_write write;
    uint8_t *got;
    uint64_t got_bytes;
};

struct sim;
struct sim_client {
    struct sim *sim;
    uint32_t number, generation, depth;
    int fd; /* -1: none */
    bool structured, gone, looking, giving;
    uint64_t along;  /* page that it reads next of those in a row ... */
    uint32_t along_step, along_left; /* ... and how many more */
    uint64_t answered; /* order when the oldest of the answers that it has not looked at was sent */
    struct chance chance;
    struct sim_bytes outgoing, incoming;
    struct sim_request request[SIM_REQUESTS];
    uint32_t out;
};

/* What the last life left.  DOUBTED: it stopped, with pages that may not be on the backup; so its state counts on. */
enum sim_remains { SIM_NOTHING, SIM_STOPPED, SIM_DOUBTED, SIM_KILLED, SIM_CUT };

struct sim {
    struct sim_options options;
    const uint8_t *script; /* as far as it has been said */
    struct sim_system system;
    struct sim_log log;
    struct sim_disk disk;
    struct sim_peer peer[SIM_PEERS];
    struct sim_client client[SIM_CLIENTS];
    struct oracle oracle;
    struct chance chance;
    uint64_t troubles;
    bool stopping;   /* the device may hang up */
    bool quiet;      /* no trouble any more: what is asked now must be answered */

    struct isw_device_config config;
    isw_device *device; /* NULL: no process */
    struct isw_page *page;
    struct isw_intent *intents;
    isw_sealer *sealer; /* what a recovery opens pages with; NULL: they are not sealed */
    uint8_t *lost_durable, *lost_syncing; /* of each page: the state file's disk says that it is lost */
    uint32_t slabs, peers;
    uint32_t book[SIM_SLABS_MAX]; /* peer + 1 whose memory may hold pages of the slab: written before the device maps it */
    /* While a slab moves: peer + 1 that is to have it, whose memory may hold pages of it and is not on record yet; and, once it
     * is, the one that had it. */
    uint32_t target[SIM_SLABS_MAX], leaving[SIM_SLABS_MAX];
    enum sim_remains remains;
    uint64_t flush_told;  /* when the last FLUSH was sent that was answered: what was lost before has been said */
    uint64_t life, life_order /* when it began */, operations, life_operations; /* life_operations: until this count this life goes on */
    bool draining[SIM_SLABS_MAX], harmed[SIM_PEERS];
    bool controlled; /* control has its turn */

    struct { uint64_t first, sectors; } window[SIM_WINDOWS];
    uint64_t pace_ns;
    uint64_t checks, digest, guessed, dropped, ready_ns; /* guesses of this life: read, dropped, and when the last one that was counted came */
    /* What was met, all seeds together. */
    struct sim_met {
        uint64_t seeds, operations, rounds, lives, kills, cuts, recoveries, settled, stops, errors, lost_pages, peers_lost, faults, peers_resumed,
            moves, moved_pages, guessed, guesses_of_peers, guesses_of_disk, guesses_dropped, borrowed; /* guessed: and read */
    } met;
};

void sim_trace(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Lives one seed through; fails the test where anything is wrong. */
void sim_run(struct sim *sim, const struct sim_options *options);

/* Frees what runs have in common. */
void sim_end(struct sim *sim);

/* sim_life.c */
void sim_start(struct sim *sim);
void sim_recover(struct sim *sim);
void sim_kill(struct sim *sim);

/* sim_state.c */
void sim_state_open(struct sim *sim);
void sim_state_close(struct sim *sim);
void sim_state_step(void *owner, enum sim_state_sync step); /* a sync of the engine's */
void sim_state_synced(struct sim *sim);                     /* one of Python's */
void sim_state_power_cut(struct sim *sim);

/* sim_seals.c: the file of seals, as far as Python has to do with it */
void sim_seals_open(struct sim *sim);
void sim_seals_close(struct sim *sim);
void sim_seals_anew(struct sim *sim); /* with a state file that is new */
/* The checksum of what a page at a peer reads as by its own seal; false: by none. */
bool sim_seals_look(struct sim *sim, uint64_t page, const uint8_t *remote, uint32_t *sum);
/* recovery.py: the same, or by that of a version under way, which
 * then becomes its own.  False: by none of them. */
bool sim_seals_try(struct sim *sim, uint64_t page, const uint8_t *remote, uint32_t *sum);

/* sim_moves.c: slabs that move from one peer to another, as far as Python has to do with it */
void sim_move(struct sim *sim, uint32_t slab, uint32_t peer);
void sim_hear_moved(struct sim *sim, const struct isw_event *event);
void sim_hear_move_failed(struct sim *sim, const struct isw_event *event);
/* True: the peer was the one that had the slab before it moved. */
bool sim_left(struct sim *sim, uint32_t slab, uint32_t peer);
/* Its lease is over. */
void sim_moves_end_with(struct sim *sim, uint32_t peer);
/* What is not on record is given back by the next process. */
void sim_moves_recover(struct sim *sim);

/* sim_control.c */
void sim_control(struct sim *sim);
void sim_control_start(struct sim *sim);
/* book: of a slab's book or target.  Does that peer owe answers that may yet cost what it holds, whenever it got it? */
bool sim_owing(const struct sim *sim, uint32_t book);
void sim_attach(struct sim *sim, uint32_t peer);
bool sim_has(const struct sim *sim, enum sim_trouble trouble);

/* sim_load.c: who asks for what */
void sim_load_open(struct sim *sim);
void sim_load_start(struct sim *sim);
/* Asks for everything once, in order, and waits for the answers. */
void sim_load_read_all(struct sim *sim);
/* One turn of the loop, one of control. */
void sim_turn(struct sim *sim);
/* Turns of the loop until it is true; fails the test when it does not become so in that time. */
void sim_until(struct sim *sim, bool (*is)(const struct sim *sim), uint64_t limit_ms, const char *what);

/* sim_client.c */
void sim_client_connect(struct sim_client *client);
void sim_client_leave(struct sim_client *client);
void sim_clients_cut(struct sim *sim); /* the process they spoke with is gone */
bool sim_clients_idle(const struct sim *sim);
/* A request by name, at once; answers come while the loop turns. */
void sim_client_ask(struct sim_client *client, uint16_t command, uint16_t flags, uint64_t first, uint64_t sectors);
void sim_client_check_ages(const struct sim *sim, uint64_t limit_ns);

/* sim_check.c: the legal states of the engine's memory between two turns of its loop. */
void sim_check(struct sim *sim);
/* Everything that a recovery or a lost peer left behind is done. */
bool sim_all_durable(const struct sim *sim);
/* The engine's own word: once a sync has failed, FLUSH may say so until the page is sure again. */
bool sim_any_doubtful(const struct sim *sim);

#endif
