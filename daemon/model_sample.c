/* SPDX-License-Identifier: Apache-2.0 */
/* model_sample.c - see model_sample.h. */
#include "daemon/model_sample.h"

#define SHARED_MAX 4u /* times as much as what is new of a chain, what was taken before */

/* With the chain that was taken with which it shares most. */
static uint32_t shared(const struct sequence_step *entry, const uint32_t *positions, uint32_t taken,
		       const struct sequence_block *chain, uint32_t count)
{
	uint32_t most = 0, same = 0, at = 0;

	for (uint32_t i = 0; i < taken; i++) {
		at = positions[i] == 0 ? 0 : at + 1;
		if (at == 0)
			same = 0;
		if (same == at && at < count && entry[i].block == chain[at].block)
			same++;
		most = same > most ? same : most;
	}
	return most;
}

uint32_t model_sample_wants(const struct sequence_step *entry, const uint32_t *positions,
			    uint32_t taken, const struct sequence_block *chain, uint32_t count,
			    uint32_t most)
{
	const uint32_t known = shared(entry, positions, taken, chain, count);
	const uint32_t fresh = count - known < most ? count - known : most;

	return fresh == 0 || known > fresh * SHARED_MAX ? 0 : known + fresh;
}
