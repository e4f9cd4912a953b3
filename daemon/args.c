/* SPDX-License-Identifier: Apache-2.0 */
/*
 * args.c - which tenant has how much of the argument memory and of the jobs.  Both are of a fixed size, and one session
 * can ask for all of either: without a share for each, one tenant's queue would be every other one's refusal.
 */
#include "daemon/args.h"

#include <assert.h>
#include <errno.h>

#include "daemon/lane_state.h"

int args_take(struct lane *lane, struct tenant *tenant, uint64_t bytes, uint32_t *ret_slot)
{
	uint64_t slot_bytes;

	if (!args_share_allows(tenant->args_bytes, bytes, lane->args_bytes, LANE_ARGS_BYTES) ||
	    pool_alloc(lane->args, bytes, 0, ret_slot))
		return -EAGAIN;
	slot_bytes = pool_slot_bytes(lane->args, *ret_slot);
	tenant->args_bytes += slot_bytes;
	lane->args_bytes += slot_bytes;
	return 0;
}

void args_give(struct lane *lane, struct tenant *tenant, uint32_t slot)
{
	uint64_t slot_bytes = pool_slot_bytes(lane->args, slot);

	assert(slot_bytes <= tenant->args_bytes && slot_bytes <= lane->args_bytes);
	tenant->args_bytes -= slot_bytes;
	lane->args_bytes -= slot_bytes;
	pool_release(lane->args, slot);
}

int args_take_job(const struct lane *lane, struct tenant *tenant)
{
	if (!args_share_allows(tenant->jobs, 1, lane->jobs_count, LANE_JOBS_MAX))
		return -EAGAIN;
	tenant->jobs++;
	return 0;
}

void args_give_job(struct tenant *tenant)
{
	assert(tenant->jobs > 0);
	tenant->jobs--;
}
