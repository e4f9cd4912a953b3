/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quota.c - what a tenant's blocks occupy, in compressed bytes, wherever they lie.  A charge is taken
 * before the slot and given back when the block leaves the index: block.record_bytes is the receipt.
 */
#include <assert.h>
#include <errno.h>

#include "daemon/lane_state.h"

int quota_charge(struct tenant *tenant, uint64_t bytes)
{
	uint64_t charged = atomic_load_explicit(&tenant->charged_bytes, memory_order_relaxed);

	uint64_t quota = atomic_load_explicit(&tenant->quota_bytes, memory_order_relaxed);

	/* charged + bytes > quota, without overflow; a quota may have become less than what is charged */
	if (quota && (charged >= quota || bytes > quota - charged))
		return -EDQUOT;
	atomic_store_explicit(&tenant->charged_bytes, charged + bytes, memory_order_relaxed);
	return 0;
}

void quota_uncharge(struct tenant *tenant, uint64_t bytes)
{
	uint64_t charged = atomic_load_explicit(&tenant->charged_bytes, memory_order_relaxed);

	assert(bytes <= charged);
	atomic_store_explicit(&tenant->charged_bytes, charged - bytes, memory_order_relaxed);
}
