/* The simulated file of seals: new with each new state file, kept over kills; and what a recovery opens pages with. */
#include "seals.h"
#include "seed.h"
#include "sim.h"

enum { PAGE = ISW_PAGE_BYTES };

static const uint8_t root_key[ISW_SEAL_KEY_BYTES] = "the root key is always the same";

void sim_seals_open(struct sim *sim)
{
    uint64_t intents, pages, total;
    sim->sealer = NULL;
    sim->config.seals = NULL;
    if (!sim->options.sealed)
        return;
    CHECK_EQUAL(isw_seals_layout(sim->config.size_bytes, &intents, &pages, &total), 0);
    sim->config.seals = calloc(1, total);
    sim->config.seals_bytes = total;
    sim->config.seal_key = root_key;
    CHECK(sim->config.seals);
    sim_seals_anew(sim);
}

void sim_seals_close(struct sim *sim)
{
    isw_sealer_free(sim->sealer);
    free(sim->config.seals);
    sim->sealer = NULL;
    sim->config.seals = NULL;
}

/* Some begin where the next key is near. */
void sim_seals_anew(struct sim *sim)
{
    struct isw_seals_header *header = sim->config.seals;
    if (!header)
        return;
    memset(header, 0, sim->config.seals_bytes);
    uint64_t words[2] = {sim->options.seed, oracle_now(&sim->oracle)};
    memcpy(header->salt, words, sizeof words);
    header->serial = (words[0] + words[1]) % 3 ? 0 : (1ull << 32) - 40;
    sim->system.last_serial = header->serial;
    isw_sealer_free(sim->sealer);
    sim->sealer = isw_sealer_new(root_key, header->salt, header->check);
    CHECK(sim->sealer);
}

static bool opens(struct sim *sim, uint64_t page, const struct isw_seal *seal, const uint8_t *remote, uint32_t *sum)
{
    uint8_t plain[PAGE];
    if (isw_sealer_open(sim->sealer, page, seal_serial(seal), seal->tag, remote, plain))
        return false;
    *sum = checksum_of(plain);
    return true;
}

static struct isw_seal *own_seal(const struct sim *sim, uint64_t page)
{
    uint64_t intents_offset, pages_offset, total;
    CHECK_EQUAL(isw_seals_layout(sim->config.size_bytes, &intents_offset, &pages_offset, &total), 0);
    return (struct isw_seal *)(void *)((uint8_t *)sim->config.seals + pages_offset) + page;
}

static const struct isw_seal *intended_seal(const struct sim *sim, uint32_t intent, uint64_t at)
{
    return (const struct isw_seal *)(const void *)((uint8_t *)sim->config.seals + PAGE) + (uint64_t)intent * ISW_OP_PAGES_MAX + at;
}

bool sim_seals_look(struct sim *sim, uint64_t page, const uint8_t *remote, uint32_t *sum)
{
    if (sim->sealer)
        return opens(sim, page, own_seal(sim, page), remote, sum);
    *sum = checksum_of(remote);
    return true;
}

bool sim_seals_try(struct sim *sim, uint64_t page, const uint8_t *remote, uint32_t *sum)
{
    if (sim_seals_look(sim, page, remote, sum))
        return true;
    struct isw_seal *own = own_seal(sim, page);
    for (uint32_t i = 0; i < ISW_OPS; i++) {
        uint64_t at = page - sim->intents[i].first_page;
        if (!sim->intents[i].pages || page < sim->intents[i].first_page || at >= sim->intents[i].pages ||
            !opens(sim, page, intended_seal(sim, i, at), remote, sum))
            continue;
        sim_point(&sim->system);
        memcpy(own, intended_seal(sim, i, at), sizeof *own / 2);
        sim_point(&sim->system); /* killed again, half-way */
        *own = *intended_seal(sim, i, at);
        return true;
    }
    return false;
}
