/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_place.h - a region of a rig's device memory, and an image of what should be in it: in its blocks, between
 * and behind them.
 */
#ifndef SKVCD_TESTS_LIB_GPU_PLACE_H
#define SKVCD_TESTS_LIB_GPU_PLACE_H

#include "tests/lib/gpu_codec_rig.h"
#include "tests/lib/gpu_kv.h"

struct gpu_place {
	struct gpu_codec_rig *rig; /* borrowed */
	struct device_region region;
	uint8_t *base;	       /* of the device */
	uint8_t *image, *seen; /* of the host */
	uint64_t bytes;
};

/* The image is all poison; the memory is whatever it is. */
void gpu_place_make(struct gpu_codec_rig *rig, struct gpu_place *p, const struct gpu_kv *kv,
		    enum gpu_kv_layout layout, uint32_t blocks);
void gpu_place_drop(struct gpu_place *p);
void gpu_place_put(struct gpu_place *p); /* the image into the memory */
void gpu_place_poison(struct gpu_place *p);
/* Fails when the memory is not what the image says.  `what` goes before the line. */
void gpu_place_check(struct gpu_place *p, const char *what);

#endif
