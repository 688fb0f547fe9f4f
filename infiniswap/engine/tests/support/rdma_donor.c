/* Donors of memory over RDMA: no program of theirs takes part, there is only memory, keys, and queue pairs. */
#include "fake_port.h"

static struct rdma_donor *known(struct fake_verbs *v, uint32_t number, uint32_t *which)
{
    for (uint32_t i = 0; i < DONORS_MAX; i++)
        for (*which = 0; v->donor[i] && *which < ISW_RDMA_QUEUE_PAIRS; ++*which)
            if (v->donor[i]->end[*which].number == number && number)
                return v->donor[i];
    return NULL;
}

struct rdma_donor *donor_of(struct fake_verbs *v, struct fake_qp *qp)
{
    uint32_t which = 0;
    struct rdma_donor *donor = known(v, qp->attr.dest_qp_num, &which);
    bool meant = donor && donor->end[which].remote_number == qp->base.qp_num && donor->end[which].psn == qp->attr.rq_psn &&
                 donor->end[which].remote_psn == qp->attr.sq_psn;
    qp->which = which;
    return meant ? donor : NULL;
}

const struct region *donor_region(const struct rdma_donor *donor, uint64_t address, uint64_t bytes, uint32_t key)
{
    for (uint32_t i = 0; i <= donor->slabs; i++) {
        const struct region *r = &donor->region[i];
        if (r->key && r->key == key && address >= r->address && address + bytes <= r->address + r->bytes)
            return r;
    }
    return NULL;
}

/* Where the memory lies at the donor has nothing to do with where it lies here, nor with the slab's number. */
static void lend(struct rdma_donor *donor, uint32_t slab)
{
    uint64_t at = slab * donor->slab_bytes, left = donor->size_bytes - at;
    bool probes = slab == donor->slabs;
    donor->region[slab] = (struct region){
        .key = donor->verbs->next_key += 0x1011,
        .address = (chance_next(&donor->chance) >> 17) * ISW_PAGE_BYTES,
        .bytes = probes ? ISW_PAGE_BYTES : left < donor->slab_bytes ? left : donor->slab_bytes,
        .memory = donor->memory + (probes ? donor->size_bytes : at),
    };
}

struct rdma_donor *rdma_donor_open(struct fake_verbs *v, uint64_t size_bytes, uint64_t slab_bytes, uint64_t chance_number)
{
    struct rdma_donor *donor = calloc(1, sizeof *donor);
    uint32_t at = 0;
    CHECK(donor);
    donor->verbs = v;
    donor->size_bytes = size_bytes;
    donor->slab_bytes = slab_bytes;
    donor->slabs = (uint32_t)((size_bytes + slab_bytes - 1) / slab_bytes);
    donor->memory = calloc(1, size_bytes + ISW_PAGE_BYTES);
    donor->chance = chance_start(chance_number);
    CHECK(donor->memory && donor->slabs <= DONOR_SLABS_MAX);
    pthread_mutex_init(&donor->memory_lock, NULL);
    atomic_store(&donor->manners.status, IBV_WC_RETRY_EXC_ERR);
    pthread_mutex_lock(&v->lock);
    for (uint32_t slab = 0; slab <= donor->slabs; slab++)
        lend(donor, slab);
    while (at < DONORS_MAX && v->donor[at])
        at++;
    CHECK(at < DONORS_MAX);
    v->donor[at] = donor;
    pthread_mutex_unlock(&v->lock);
    return donor;
}

/* Its queue pairs are no more: nothing that the device's still send is answered.  With the lock held. */
static void leave(struct rdma_donor *donor, bool flush)
{
    struct fake_verbs *v = donor->verbs;
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++) {
        struct fake_qp *qp; /* while we wait the device may destroy it, and make another one */
        while ((qp = v->qp[i]) && qp->donor == donor && qp->busy)
            pthread_cond_wait(&v->idle, &v->lock);
        if (!qp || qp->donor != donor)
            continue;
        if (flush)
            qp->base.state = IBV_QPS_ERR;
        qp->donor = NULL;
    }
    memset(donor->end, 0, sizeof donor->end);
    pthread_cond_signal(&v->work);
}

void rdma_donor_close(struct rdma_donor *donor)
{
    struct fake_verbs *v = donor->verbs;
    pthread_mutex_lock(&v->lock);
    leave(donor, false);
    for (uint32_t i = 0; i < DONORS_MAX; i++)
        if (v->donor[i] == donor)
            v->donor[i] = NULL;
    pthread_mutex_unlock(&v->lock);
    pthread_mutex_destroy(&donor->memory_lock);
    free(donor->memory);
    free(donor);
}

struct rdma_manners *rdma_donor_manners(struct rdma_donor *donor)
{
    return &donor->manners;
}

static void overwrite(struct rdma_donor *donor, uint64_t at, uint64_t bytes)
{
    pthread_mutex_lock(&donor->memory_lock);
    memset(donor->memory + at, 0xee, bytes);
    pthread_mutex_unlock(&donor->memory_lock);
}

void rdma_donor_revoke(struct rdma_donor *donor, uint32_t slab)
{
    pthread_mutex_lock(&donor->verbs->lock);
    lend(donor, slab);
    overwrite(donor, slab * donor->slab_bytes, donor->region[slab].bytes);
    pthread_mutex_unlock(&donor->verbs->lock);
}

void rdma_donor_kill(struct rdma_donor *donor)
{
    pthread_mutex_lock(&donor->verbs->lock);
    leave(donor, false);
    for (uint32_t slab = 0; slab <= donor->slabs; slab++)
        lend(donor, slab);
    overwrite(donor, 0, donor->size_bytes);
    pthread_mutex_unlock(&donor->verbs->lock);
}

void rdma_donor_restart(struct rdma_donor *donor)
{
    pthread_mutex_lock(&donor->verbs->lock);
    leave(donor, true);
    for (uint32_t slab = 0; slab <= donor->slabs; slab++)
        lend(donor, slab);
    pthread_mutex_unlock(&donor->verbs->lock);
}

int rdma_donor_tell(struct rdma_donor *donor, struct rig *rig, uint32_t slab, uint32_t peer)
{
    pthread_mutex_lock(&donor->verbs->lock);
    struct region region = donor->region[slab];
    pthread_mutex_unlock(&donor->verbs->lock);
    return isw_device_slab_region(rig->device, slab, peer, region.address, region.key);
}

void rdma_donor_drop(struct rdma_donor *donor)
{
    pthread_mutex_lock(&donor->verbs->lock);
    leave(donor, true);
    pthread_mutex_unlock(&donor->verbs->lock);
}

struct isw_rdma_path rdma_donor_path(struct rdma_donor *donor, const uint32_t *numbers)
{
    struct isw_rdma_path path = {
        .gid = {[10] = 0xff, [11] = 0xff, 10, 0, 0, 2},
        .gid_index = 3,
        .global_route = 1,
        .mtu_bytes = 1024,
        .reads_max = 16,
        .ack_timeout = 14,
        .retries = 7,
        .rnr_timer = 12,
        .rnr_retries = 7,
        .hop_limit = 64,
    };
    struct fake_verbs *v = donor->verbs;
    pthread_mutex_lock(&v->lock);
    leave(donor, false);
    for (uint32_t i = 0; i < ISW_RDMA_QUEUE_PAIRS; i++) {
        donor->end[i].number = path.number[i] = v->next_number++;
        donor->end[i].psn = path.psn[i] = (uint32_t)chance_below(&donor->chance, 1 << 24);
        donor->end[i].remote_psn = path.own_psn[i] = (uint32_t)chance_below(&donor->chance, 1 << 24);
        donor->end[i].remote_number = numbers[i];
    }
    path.probe_address = donor->region[donor->slabs].address;
    path.probe_rkey = donor->region[donor->slabs].key;
    pthread_mutex_unlock(&v->lock);
    return path;
}

void rdma_donor_begin(struct rdma_donor *donor, struct rig *rig, uint32_t peer)
{
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    CHECK_EQUAL(isw_device_rdma_prepare(rig->device, peer, numbers), 0);
    struct isw_rdma_path path = rdma_donor_path(donor, numbers);
    CHECK_EQUAL(isw_device_rdma_connect(rig->device, peer, &path), 0);
    CHECK_EQUAL(isw_device_peer_attach_rdma(rig->device, peer), 0);
}

void rdma_donor_attach(struct rdma_donor *donor, struct rig *rig, uint32_t peer)
{
    rdma_donor_begin(donor, rig, peer);
    CHECK_EQUAL(rig_await(rig, ISW_EVENT_PEER_READY).peer, peer);
}

int rdma_donor_map(struct rdma_donor *donor, struct rig *rig, uint32_t slab, uint32_t peer)
{
    pthread_mutex_lock(&donor->verbs->lock);
    struct region region = donor->region[slab];
    pthread_mutex_unlock(&donor->verbs->lock);
    return isw_device_slab_map_region(rig->device, slab, peer, 0, region.address, region.key);
}

int rdma_donor_move(struct rdma_donor *donor, struct rig *rig, uint32_t slab, uint32_t peer, uint32_t limit_ms)
{
    pthread_mutex_lock(&donor->verbs->lock);
    struct region region = donor->region[slab];
    pthread_mutex_unlock(&donor->verbs->lock);
    return isw_device_slab_move_region(rig->device, slab, peer, limit_ms, region.address, region.key);
}

uint32_t rdma_donor_queue_pair(struct rdma_donor *donor, uint32_t which)
{
    pthread_mutex_lock(&donor->verbs->lock);
    uint32_t number = donor->end[which].remote_number;
    pthread_mutex_unlock(&donor->verbs->lock);
    return number;
}

uint8_t rdma_donor_byte(struct rdma_donor *donor, uint64_t at)
{
    pthread_mutex_lock(&donor->memory_lock);
    uint8_t byte = donor->memory[at];
    pthread_mutex_unlock(&donor->memory_lock);
    return byte;
}

void rdma_open(struct rig *rig, uint32_t poll_us)
{
    struct isw_rdma_port port;
    char error[256] = "";
    if (isw_device_rdma_open(rig->device, "fake0", 1, poll_us, &port, error, sizeof error))
        FAIL("the RDMA device does not open: %s", error);
}
