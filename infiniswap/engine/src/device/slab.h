/* Slabs as the engine knows them; what Python sees of them is struct isw_slab_view. */
#ifndef ISW_SLAB_H
#define ISW_SLAB_H

#include "moving.h"
#include "op_move.h"
#include "op_resync.h"
#include "punch.h"
#include "trims.h"

struct device;
struct transfer;

struct slab_forget { /* its pages still say REMOTE from here to its last one, and nobody believes them */
    uint32_t at;
    bool listed;
    struct slab *next;
};

/* Memory at a peer. */
struct slab_place {
    uint32_t peer;
    uint32_t key;       /* RDMA: opens it, and ... */
    uint64_t address;   /* ... where it lies */
    uint32_t transfers; /* in flight to and from it, of the present generation or an older one */
    uint32_t writes;    /* of these, to it */
};

struct slab {
    struct slab_place place[2]; /* the second one while it moves, or has just moved: moving.h */
    uint32_t at;                /* in which its remote copies are */
    struct moving *moving;      /* NULL: it stays where it is */
    bool touched;       /* SLAB_TOUCHED was told since it became unmapped */
    uint32_t only_remote; /* pages that have no other copy: they wait for resync */
    uint64_t lost_changed; /* number of the last change of a LOST flag in it (state_sync.c) */
    struct slab_move move;
    struct slab_resync resync;
    struct slab_punch punch;
    struct slab_forget forget;
    struct slab_trim trim;
};

struct forgetting {
    struct slab *first, **end;
};

/* What these return is 0 or -errno. */
int slab_map(struct device *d, uint32_t slab, uint32_t peer, bool adopt, uint64_t address, uint32_t key);
int slab_unmap(struct device *d, uint32_t slab);
void slab_lost(struct device *d, uint32_t slab, int error); /* error 0: its peer's loss is told instead */
uint32_t slab_unmapped(struct device *d, uint32_t slab); /* nobody holds it any more; returns who did */
void slab_release_if_idle(struct device *d, uint32_t slab);
/* Its remote copies count, or will once its peer is back. */
bool slab_keeps_copies(const struct device *d, uint32_t slab);
/* A transfer to or from its present place, or the other one. */
void slab_transfer_begins(struct device *d, struct transfer *transfer, bool other);
void slab_transfer_ended(struct device *d, const struct transfer *transfer);
/* The peer has answered with an error. */
void slab_refused(struct device *d, const struct transfer *transfer, int error);
void slab_tell_touched(struct device *d, uint32_t slab);
/* What was left on peers by the last process and is not mapped now never will be. */
void slabs_adoption_end(struct device *d);
/* The remote copies of a slab count no more.  At once, for who maps it anew; or a slice a round (slabs_forget), which is the
 * same to everybody: only the pages of a slab that is MAPPED are ever looked for at a peer. */
void slab_forget_remote(struct device *d, uint32_t slab);
void slab_forget_later(struct device *d, uint32_t slab);
void slabs_forget(struct device *d);

#endif
