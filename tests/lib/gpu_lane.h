/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_lane.h - a lane with a simulated GPU, one client and a region in its memory: what most tests of that
 * data path begin and end with.  Key n is block n, made from seed n.
 */
#ifndef SKVCD_TESTS_LIB_GPU_LANE_H
#define SKVCD_TESTS_LIB_GPU_LANE_H

#include "tests/lib/gpu_rig.h"

struct gpu_lane {
	struct config config;
	struct rig rig;
	struct lane_rig_session rs;
	struct gpu_rig_region g;
};

void gpu_lane_start(struct gpu_lane *f, enum gpu_rig_layout layout);
uint64_t gpu_lane_counter(struct gpu_lane *f, enum stats_id id);
void gpu_lane_eventually(struct gpu_lane *f, enum stats_id id, uint64_t least);
void gpu_lane_stop(struct gpu_lane *f);
struct skvc_abi_cqe gpu_lane_store(struct gpu_lane *f, uint32_t first, uint32_t count);
void gpu_lane_store_all(struct gpu_lane *f, uint32_t first, uint32_t count);
uint64_t gpu_lane_lease_of(struct gpu_lane *f, uint32_t first, uint32_t count);
void gpu_lane_load_all(struct gpu_lane *f, uint32_t first, uint32_t count);
void gpu_lane_load_host(struct gpu_lane *f, uint32_t first, uint32_t count);
void gpu_lane_with_profile(struct gpu_lane *f);

#endif
