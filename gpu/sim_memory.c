/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_memory.c - the simulated GPU's own memory: room for payloads of ENCODE, and what the pool takes.
 * All of it is the lane's.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "gpu/sim_handles.h"
#include "gpu/sim_internal.h"

#define STAGE_ALIGN 256u

struct sim_pool_piece {
	struct sim_pool_piece *next;
	uint8_t *memory; /* owned mapping */
	uint64_t bytes;
};

uint64_t sim_stage_bytes(const struct codec_geometry *g)
{
	return (codec_bound(g) + STAGE_ALIGN - 1u) & ~(uint64_t)(STAGE_ALIGN - 1u);
}

bool sim_stage_fits(const struct sim_memory *m, const struct codec_geometry *g)
{
	return sim_stage_bytes(g) <= m->staging_bytes - m->staging_used_bytes;
}

int sim_stage_new(struct sim_memory *m, const struct codec_geometry *g,
		  struct sim_staged **ret_staged)
{
	struct sim_staged *s = malloc(sizeof(*s));
	uint64_t bytes = sim_stage_bytes(g);

	if (!s)
		return -ENOMEM;
	*s = (struct sim_staged){ .next = m->staged, .memory = malloc(bytes), .bytes = bytes };
	if (!s->memory) {
		free(s);
		return -ENOMEM;
	}
	m->staged = s;
	m->staging_used_bytes += bytes;
	*ret_staged = s;
	return 0;
}

void sim_stage_free(struct sim_memory *m, struct sim_staged *staged)
{
	struct sim_staged **at = &m->staged;

	while (*at != staged)
		at = &(*at)->next;
	*at = staged->next;
	m->staging_used_bytes -= staged->bytes;
	free(staged->memory);
	free(staged);
}

int sim_pool_new(struct sim_memory *m, uint64_t bytes, void **ret_address)
{
	struct sim_pool_piece *p;
	void *memory;

	if (bytes == 0)
		return -EINVAL;
	if (bytes > SIM_MEMORY_BYTES - m->staging_bytes - m->pool_bytes)
		return -ENOMEM;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -ENOMEM;
	p = malloc(sizeof(*p));
	if (!p) {
		(void)munmap(memory, bytes);
		return -ENOMEM;
	}
	*p = (struct sim_pool_piece){ .next = m->pools, .memory = memory, .bytes = bytes };
	m->pools = p;
	m->pool_bytes += bytes;
	*ret_address = sim_device_address(memory);
	return 0;
}

static bool range_within(const void *address, uint64_t bytes, const uint8_t *memory,
			 uint64_t memory_bytes)
{
	uint64_t off = (uintptr_t)sim_host(address) - (uintptr_t)memory;

	return off <= memory_bytes && bytes <= memory_bytes - off;
}

bool sim_in_pool(const struct sim_memory *m, const void *address, uint64_t bytes)
{
	for (const struct sim_pool_piece *p = m->pools; p; p = p->next)
		if (range_within(address, bytes, p->memory, p->bytes))
			return true;
	return false;
}

bool sim_in_staging(const struct sim_memory *m, const void *address, uint64_t bytes)
{
	for (const struct sim_staged *s = m->staged; s; s = s->next)
		if (range_within(address, bytes, s->memory, s->bytes))
			return true;
	return false;
}

void sim_memory_deinit(struct sim_memory *m)
{
	while (m->staged)
		sim_stage_free(m, m->staged);
	while (m->pools) {
		struct sim_pool_piece *p = m->pools;

		m->pools = p->next;
		(void)munmap(p->memory, p->bytes);
		free(p);
	}
}
