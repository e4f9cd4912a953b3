/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_plan.c - the planner's numbers on the bus: what was measured, and what each way to code a namespace's blocks
 * would mean.  Control thread; reads what the lane shows.
 */
#include "daemon/bus_internal.h"

#include <stdio.h>

static uint64_t load(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

/* "cpu-encode-channel", ...: as enum plan_shown numbers them. */
static void rate_name(unsigned id, char *ret, size_t bytes)
{
	static const char *const plain[PLAN_SHOWN_CODE] = {
		[PLAN_SHOWN_COPY] = "copy",
		[PLAN_SHOWN_LINK] = "gpu-link",
		[PLAN_SHOWN_NVME_READ] = "nvme-read",
		[PLAN_SHOWN_NVME_WRITE] = "nvme-write",
	};
	unsigned code = id - PLAN_SHOWN_CODE;

	if (id < PLAN_SHOWN_CODE)
		(void)snprintf(ret, bytes, "%s", plain[id]);
	else
		(void)snprintf(ret, bytes, "%s-%s-%s", code / CODEC_SPEC_COUNT / 2 ? "gpu" : "cpu",
			       code / CODEC_SPEC_COUNT % 2 ? "decode" : "encode",
			       codec_speculator_name((uint8_t)(code % CODEC_SPEC_COUNT)));
}

static int append_rates(sd_bus_message *m, const struct plan_shown_rate *rates)
{
	int r = sd_bus_message_open_container(m, 'a', "(stt)");

	for (unsigned id = 0; r >= 0 && id < PLAN_SHOWN_RATES; id++) {
		char name[48];

		rate_name(id, name, sizeof(name));
		r = sd_bus_message_append(m, "(stt)", name, load(&rates[id].bytes_per_s),
					  load(&rates[id].samples));
	}
	return r >= 0 ? sd_bus_message_close_container(m) : r;
}

/* Those of its ways that can be had.  A namespace that was not looked at yet has none. */
static int append_ways(sd_bus_message *m, const struct namespace *ns)
{
	uint8_t chosen = atomic_load_explicit(&ns->plan_chosen, memory_order_relaxed);
	int r = 0;

	for (unsigned s = 0; r >= 0 && s < CODEC_SPEC_COUNT; s++) {
		const struct plan_shown_way *w = &ns->plan_shown[s];

		if (load(&w->ratio_milli))
			r = sd_bus_message_append(
				m, "(usststttttttbb)", ns->id, ns->tenant->name, ns->model,
				load(&ns->prefill_tokens_per_s), codec_speculator_name((uint8_t)s),
				load(&w->ratio_milli), load(&w->host_milli), load(&w->nvme_milli),
				load(&w->host_ns), load(&w->nvme_ns), load(&w->gone_ns),
				load(&w->expected_ns), (int)load(&w->assumed),
				(int)(s && s == chosen));
	}
	return r;
}

int bus_on_get_plan(sd_bus_message *call, void *user, sd_bus_error *error)
{
	const struct bus *bus = user;
	const struct registry *registry = control_registry(bus->control);
	sd_bus_message *reply = NULL;
	int r = bus_reply_new(call, &reply);

	(void)error;
	if (r >= 0)
		r = append_rates(reply, control_plan_rates(bus->control));
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(usststttttttbb)");
	for (uint32_t i = 0; r >= 0 && i < registry->namespaces_count; i++)
		r = append_ways(reply, registry->namespaces[i]);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return bus_reply_send(reply, r);
}
