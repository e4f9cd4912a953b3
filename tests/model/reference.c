/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reference.c - see reference.h.
 */
#include "tests/model/reference.h"

#include <assert.h>
#include <string.h>

void reference_store_begin(struct reference *r, uint32_t chain, uint32_t first, uint32_t count,
			   uint32_t version)
{
	assert(chain < REFERENCE_CHAINS && first + count <= REFERENCE_POSITIONS);
	for (uint32_t i = first; i < first + count; i++) {
		r->key[chain][i].possible |= (uint8_t)(1u << version);
		r->key[chain][i].ever |= (uint8_t)(1u << version);
		r->key[chain][i].stores_pending++;
	}
}

void reference_store_end(struct reference *r, uint32_t chain, uint32_t first, uint32_t count)
{
	for (uint32_t i = first; i < first + count; i++) {
		assert(r->key[chain][i].stores_pending > 0);
		r->key[chain][i].stores_pending--;
	}
}

int reference_pending(const struct reference *r, uint32_t chain, uint32_t first, uint32_t count)
{
	for (uint32_t i = first; i < first + count; i++)
		if (r->key[chain][i].stores_pending)
			return 1;
	return 0;
}

void reference_dropped(struct reference *r, uint32_t chain, uint32_t first, uint32_t count)
{
	for (uint32_t i = first; i < first + count; i++)
		if (!r->key[chain][i].stores_pending)
			r->key[chain][i].possible = 0;
}

void reference_restarted(struct reference *r, int drops_may_be_lost)
{
	for (uint32_t c = 0; c < REFERENCE_CHAINS; c++)
		for (uint32_t i = 0; i < REFERENCE_POSITIONS; i++) {
			assert(!r->key[c][i].stores_pending);
			if (drops_may_be_lost)
				r->key[c][i].possible = r->key[c][i].ever;
		}
}

void reference_snapshot(const struct reference *r, uint32_t chain, uint32_t count,
			uint8_t *ret_possible)
{
	for (uint32_t i = 0; i < count; i++)
		ret_possible[i] = r->key[chain][i].possible;
}

uint32_t reference_prefix_max(const struct reference *r, uint32_t chain, uint32_t count)
{
	uint32_t i = 0;

	while (i < count && r->key[chain][i].possible)
		i++;
	return i;
}
