/* Slabs as the engine knows them; what Python sees of them is struct isw_slab_view. */
#ifndef ISW_SLAB_H
#define ISW_SLAB_H

#include "op_move.h"
#include "op_resync.h"
#include "punch.h"

struct device;

struct slab_forget { /* its pages still say REMOTE from here to its last one, and nobody believes them */
    uint32_t at;
    bool listed;
    struct slab *next;
};

struct slab {
    uint64_t remote_address; /* RDMA: where it lies at its peer, and the key to it */
    uint32_t remote_key;
    uint32_t transfers; /* in flight for its remote copy, of the present generation or an older one */
    bool touched;       /* SLAB_TOUCHED was told since it became unmapped */
    uint32_t only_remote; /* pages that have no other copy: they wait for resync */
    uint64_t lost_changed; /* number of the last change of a LOST flag in it (state_sync.c) */
    struct slab_move move;
    struct slab_resync resync;
    struct slab_punch punch;
    struct slab_forget forget;
};

struct forgetting {
    struct slab *first, **end;
};

/* What these return is 0 or -errno. */
int slab_map(struct device *d, uint32_t slab, uint32_t peer, bool adopt, uint64_t address, uint32_t key);
int slab_unmap(struct device *d, uint32_t slab);
void slab_lost(struct device *d, uint32_t slab, int error); /* error 0: its peer's loss is told instead */
void slab_release_if_idle(struct device *d, uint32_t slab);
void slab_transfer_ended(struct device *d, uint32_t slab);
void slab_tell_touched(struct device *d, uint32_t slab);
/* What was left on peers by the last process and is not mapped now never will be. */
void slabs_adoption_end(struct device *d);
/* The remote copies of a slab count no more.  At once, for who maps it anew; or a slice a round (slabs_forget), which is the
 * same to everybody: only the pages of a slab that is MAPPED are ever looked for at a peer. */
void slab_forget_remote(struct device *d, uint32_t slab);
void slab_forget_later(struct device *d, uint32_t slab);
void slabs_forget(struct device *d);

#endif
