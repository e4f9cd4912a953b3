/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reference.h - what may be stored, as far as its clients can know: for each key the set of contents that a
 * load may give back.  A block may vanish at any time (eviction, faults), so "absent" is always possible
 * unless it was just pinned; but a content that is not in the set is wrong bytes.
 *
 *	a store is submitted	its content becomes possible
 *	a drop has completed	only "absent" is, unless a store was in flight at the same time
 *	the daemon restarted	nothing changes: what lay on NVMe is found again.  Where I/O fails, so may the note
 *				of a drop have, and all that was ever stored is possible
 */
#ifndef SKVCD_TESTS_MODEL_REFERENCE_H
#define SKVCD_TESTS_MODEL_REFERENCE_H

#include <stdint.h>

#define REFERENCE_CHAINS 24u
#define REFERENCE_POSITIONS 16u
#define REFERENCE_VERSIONS 8u

struct reference_key {
	uint8_t possible; /* bit v: content of version v */
	uint8_t ever;	  /* the same, drops or not */
	uint16_t stores_pending;
};

struct reference {
	struct reference_key key[REFERENCE_CHAINS][REFERENCE_POSITIONS];
};

/* The number of the made-up block that is this key's content in this version. */
static inline uint64_t reference_content(uint32_t chain, uint32_t position, uint32_t version)
{
	return (uint64_t)version << 40 | (uint64_t)chain << 16 | position;
}

void reference_store_begin(struct reference *r, uint32_t chain, uint32_t first, uint32_t count,
			   uint32_t version);
void reference_store_end(struct reference *r, uint32_t chain, uint32_t first, uint32_t count);
/* Is a store of any of these in flight? */
int reference_pending(const struct reference *r, uint32_t chain, uint32_t first, uint32_t count);
void reference_dropped(struct reference *r, uint32_t chain, uint32_t first, uint32_t count);
void reference_restarted(struct reference *r, int drops_may_be_lost);

/* A copy of the sets of a run, for the time that a lease may live. */
void reference_snapshot(const struct reference *r, uint32_t chain, uint32_t count,
			uint8_t *ret_possible);
/* How long a prefix of this chain may be found at most. */
uint32_t reference_prefix_max(const struct reference *r, uint32_t chain, uint32_t count);

#endif
