/* Runs seeds of the simulation in processes of their own; a seed that fails is shrunk and shown. */
#ifndef SIM_RUNNER_H
#define SIM_RUNNER_H

#include "sim.h"

/* Fails the test when a seed fails. */
void sim_run_seeds(uint64_t first, uint64_t seeds, const struct sim_options *options);

/* Each request to the disk, or to the first peer, fails once: in a run for the first, in another for the second, until there
 * are no more of them.  Returns how many there were. */
uint64_t sim_fail_each(struct sim_options options, bool of_disk);
/* A number that two runs have in common only when they went the same way. */
uint64_t sim_digest(const struct sim_options *options);

#endif
