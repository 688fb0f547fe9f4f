/* Who lends a log the pages that it moves, as the device does: the present version of a page, or the one that is on its way to the log;
 * late, and not always; and sometimes, as a peer may, something else. */
#include "log_rig.h"

#include "log.h"

static void lend(void *owner, struct backup_loan *loans, uint32_t count)
{
    struct log_rig *rig = owner;
    CHECK(!rig->loans && count);
    for (uint32_t i = 1; i < count; i++)
        CHECK(loans[i].page > loans[i - 1].page);
    rig->loan = loans;
    rig->loans = count;
}

void log_lender_start(struct log_rig *rig)
{
    rig->loans = 0;
    if (rig->lends)
        rig->backup->methods->lender(rig->backup, &(struct backup_lender){rig, rig->lends, lend});
}

/* NULL: nobody has it just now. */
static const struct log_version *version_of(const struct log_page *p)
{
    for (uint32_t i = p->count; i-- > 0;)
        if (p->version[i].state != LOG_VERSION_FAILED)
            return p->version[i].zero || !p->version[i].number ? NULL : &p->version[i];
    return NULL;
}

static void answer(struct log_rig *rig, struct backup_loan *loan)
{
    const struct log_page *p = &rig->oracle.page[loan->page];
    const struct log_version *version = version_of(p);
    loan->got = version && p->mood == LOG_PAGE_SURE && !chance_in(&rig->chance, 16);
    loan->newer = p->out;
    if (loan->got) {
        log_oracle_fill(loan->page, version->number, loan->data);
        if (!loan->newer && chance_in(&rig->chance, 64)) {
            loan->data[100] ^= 1;
            rig->corrupted++;
        }
    }
    rig->lent += loan->got;
    rig->lent_newer += loan->got && loan->newer;
    rig->backup->methods->lent(rig->backup, loan);
}

bool log_lender_answer(struct log_rig *rig)
{
    if (!rig->loans)
        return false;
    uint64_t now = chance_in(&rig->chance, 2) ? rig->loans : chance_below(&rig->chance, 8);
    for (; now && rig->loans; now--, rig->loans--)
        answer(rig, rig->loan++);
    return true;
}
