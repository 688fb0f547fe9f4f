#include "trace.h"

#include "client.h"

enum { COMMAND_SHIFT = 32, SOURCE_SHIFT = 40, PEER_SHIFT = 48, ERROR_SHIFT = 56, SMALL_MAX = 255 };

/* Released in order, so who reads one of them also finds that the number is no more what it was: see trace_take.  No fence
 * is needed then, and none costs anything where stores keep their order. */
static void put(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static uint64_t get(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void trace_note(struct trace *trace, const struct request *request, enum isw_source source, int error, uint64_t now_ns)
{
    uint64_t number = trace->count + 1;
    struct trace_entry *entry = &trace->entry[number % ISW_TRACES];
    put(&entry->number, 0);
    put(&entry->word[TRACE_ARRIVED], request->started_ns);
    put(&entry->word[TRACE_LOCKED], request->locked_ns);
    put(&entry->word[TRACE_BEGUN], request->begun_ns);
    put(&entry->word[TRACE_ANSWERED], request->answered_ns);
    put(&entry->word[TRACE_DONE], now_ns);
    put(&entry->word[TRACE_OFFSET], request->offset);
    uint64_t shown = error > SMALL_MAX ? SMALL_MAX : (uint64_t)error;
    put(&entry->word[TRACE_REST], request->length | (uint64_t)(request->command & SMALL_MAX) << COMMAND_SHIFT |
                                      (uint64_t)source << SOURCE_SHIFT | (uint64_t)request->peer << PEER_SHIFT |
                                      shown << ERROR_SHIFT);
    put(&entry->number, number);
    put(&trace->count, number);
}

static bool take(const struct trace_entry *entry, uint64_t number, struct isw_trace *out)
{
    uint64_t word[TRACE_WORDS];
    if (get(&entry->number) != number)
        return false;
    for (uint32_t i = 0; i < TRACE_WORDS; i++)
        word[i] = get(&entry->word[i]);
    if (get(&entry->number) != number)
        return false; /* a word may be of a later request */
    uint64_t rest = word[TRACE_REST];
    *out = (struct isw_trace){
        .number = number,
        .arrived_ns = word[TRACE_ARRIVED],
        .locked_ns = word[TRACE_LOCKED],
        .begun_ns = word[TRACE_BEGUN],
        .answered_ns = word[TRACE_ANSWERED],
        .done_ns = word[TRACE_DONE],
        .offset = word[TRACE_OFFSET],
        .length = (uint32_t)rest,
        .command = rest >> COMMAND_SHIFT & SMALL_MAX,
        .source = rest >> SOURCE_SHIFT & SMALL_MAX,
        .peer = (int32_t)(rest >> PEER_SHIFT & SMALL_MAX) - 1,
        .error = (int32_t)(rest >> ERROR_SHIFT),
    };
    return true;
}

uint32_t trace_take(const struct trace *trace, uint64_t after, struct isw_trace *out, uint32_t most)
{
    uint64_t newest = get(&trace->count), number = newest > ISW_TRACES ? newest - ISW_TRACES : 0;
    uint32_t taken = 0;
    if (number < after)
        number = after;
    while (number < newest && taken < most) {
        number++;
        taken += take(&trace->entry[number % ISW_TRACES], number, &out[taken]);
    }
    return taken;
}
