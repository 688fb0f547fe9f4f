/* What stands in the chain behind the last checkpoint, and tools that use a log without a device. */
#ifndef ISW_LOG_REPLAY_H
#define ISW_LOG_REPLAY_H

#include "log.h"

struct log_doubt;

/* Brings the map up to the chain's end; sets completed and tail.  doubt: NULL, or it is told what the chain names. */
int log_replay(isw_log *log, bool same_boot, struct log_doubt *doubt);
/* Blocks until a checkpoint of what there is is durable. */
int log_checkpoint_now(isw_log *log);
void log_tool_end(isw_log *log);

#endif
