/* A log's orderly end, and a chain's that comes too early. */
#ifndef ISW_LOG_END_H
#define ISW_LOG_END_H

#include "log.h"

struct log_doubt;

/* Says behind the last chunk that all are durable: at an orderly close. */
void log_sign(isw_log *log);
/* After the replay: whether a header says that the chain once went on; or the map of a superblock that may have rotted, where doubt is not NULL. */
bool log_ends_early(isw_log *log, const struct log_doubt *doubt);
/* Nothing that is behind the chain's end counts any more, once a checkpoint has said so.  False: no segment is free. */
bool log_end_here(isw_log *log);

#endif
