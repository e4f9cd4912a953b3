/* SPDX-License-Identifier: Apache-2.0 */
/*
 * power_file.h - what a file is after the power was cut: a model of the device under a ring.  Writes that a flush
 * has covered are there; of each later one any sectors are, or none, whether it had ended or not.
 */
#ifndef SKVCD_TESTS_LIB_POWER_FILE_H
#define SKVCD_TESTS_LIB_POWER_FILE_H

#include <stdint.h>

#include "daemon/uring.h"
#include "tests/lib/rng.h"

struct power_write;

struct power_file {
	uint8_t *image; /* on the media for certain */
	uint64_t bytes;
	struct power_write *first,
		*last;	    /* not covered by a flush, in the order of their queueing */
	uint64_t now;	    /* counts events */
	uint64_t synced_to; /* what had ended by this event is on the media */
	struct {
		const struct uring_op *op; /* NULL: none */
		uint64_t began;
	} sync[4];
	unsigned flushes, writes;
};

/* From the file as it is; then tap everything that the ring does to it. */
void power_file_begin(struct power_file *p, const char *path, uint64_t bytes, struct uring *u);
/* Make the file what a power cut now would leave; each unflushed sector is there one time in `keep_one_in`. */
/* What begin() has the ring call; a test with several files calls it for each. */
void power_file_tap(void *user, const struct uring_op *op, int done);
void power_file_cut(struct power_file *p, const char *path, struct rng *rng, uint32_t keep_one_in);
void power_file_end(struct power_file *p);

#endif
