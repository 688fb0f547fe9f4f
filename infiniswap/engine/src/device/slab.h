/* Slabs as the engine knows them; what Python sees of them is struct isw_slab_view. */
#ifndef ISW_SLAB_H
#define ISW_SLAB_H

#include "device.h"

struct slab {
    uint64_t remote_address; /* RDMA: where it lies at its peer, and the key to it */
    uint32_t remote_key;
    uint32_t transfers; /* in flight for its remote copy, of the present generation or an older one */
    bool touched;       /* SLAB_TOUCHED was told since it became unmapped */
    uint32_t mover;     /* page at which promotion goes on; past the end: nothing to do */
    bool in_movers;
    struct slab *next_mover;
    uint32_t only_remote; /* pages that have no other copy: they wait for resync */
    uint32_t resync_at;
    bool in_resync;
    struct slab *next_resync;
    bool punching;       /* in the punch list */
    bool punch_pass;     /* a pass is under way: from punch_at to punch_end ... */
    uint32_t punch_runs; /* ... with so many in flight */
    uint32_t punch_at, punch_end;
    uint32_t punch_from, punch_to; /* where the next pass has something to look for; empty: there will be none */
    uint64_t punch_epoch, punch_next_epoch; /* of the oldest that either is about */
    uint64_t punch_rest_ns; /* after a failure, until then */
    struct slab *next_punch;
    bool forgetting;    /* in the forget list: its pages still say REMOTE up to its last one, and nobody believes them */
    uint32_t forget_at;
    struct slab *next_forget;
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

/* It has remote memory that is to be had, and is not being given up. */
static inline bool slab_mapped(const struct device *d, uint32_t slab)
{
    const struct isw_slab_view *view = &d->slab_views[slab];
    return view->state == ISW_SLAB_MAPPED && !d->peers[view->peer].failed;
}
/* Pages of it can be read from its peer, also while it drains. */
static inline bool slab_reachable(const struct device *d, uint32_t slab)
{
    const struct isw_slab_view *view = &d->slab_views[slab];
    return view->state != ISW_SLAB_UNMAPPED && !d->peers[view->peer].failed;
}

#endif
