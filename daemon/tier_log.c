/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_log.c - the NVMe log, as tier.c uses it: made at the start, and told what is worth keeping.
 */
#include "daemon/lane_state.h"

/* Is its record worth a copy, when the segment it lies in is to be used again? */
static int log_keeps(void *user, uint32_t id)
{
	return tier_policy_keeps(user, id);
}

static void log_moved(void *user, uint32_t id)
{
	(void)id;
	persist_changed(user);
}

int tier_log_start(struct lane *lane, char *err, unsigned err_bytes)
{
	const struct config *c = &lane->config;
	struct nvme_set_options o = {
		.iopoll = (int)c->nvme_iopoll,
		.sqpoll = (int)c->nvme_sqpoll,
		.log = {
			.segment_bytes = c->nvme_segment_bytes,
			.queue_depth = c->nvme_queue_depth,
			.deadline_ns = c->nvme_deadline_ns,
			.retry_ns = c->nvme_retry_ns,
			.blocks_max = c->blocks_max,
			.keep = persist_keeps(lane),
			.copy_percent = c->nvme_copy_percent,
			.keeps = log_keeps,
			.moved = log_moved,
			.evict = tier_log_evicts,
			.user = lane,
		},
	};
	struct config_nvme_device device[CONFIG_NVME_DEVICES_MAX];
	int r;

	r = config_nvme_devices(c, device);
	if (r <= 0)
		return r;
	_Static_assert(CONFIG_NVME_DEVICES_MAX <= NVME_SET_MAX, "all of them are a set");
	for (o.devices = 0; o.devices < (unsigned)r; o.devices++)
		o.device[o.devices] = (struct nvme_set_device){ device[o.devices].path,
								device[o.devices].bytes };
	r = nvme_set_open(&o, lane->uring, &lane->stats, &lane->log, err, err_bytes);
	if (r < 0)
		return r;
	lane->nvme_health = 1;
	for (unsigned i = 0; i < LANE_NVME_OPS; i++) {
		lane->nvme_op[i].lane = lane;
		tier_op_put(lane, &lane->nvme_op[i]);
	}
	return 0;
}
