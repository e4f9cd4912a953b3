/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_plan.c - the planner's numbers on the bus: what was measured, what each way to code a namespace's blocks would
 * mean, and where a block is.  Control thread; reads what the lane shows, but for that last question.
 */
#include "daemon/bus_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

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
	sd_bus_message *reply = NULL;
	int r = bus_reply_new(call, &reply);

	(void)error;
	if (r >= 0)
		r = append_rates(reply, control_plan_rates(bus->control));
	if (r >= 0)
		r = bus_append_namespaces(reply, bus, "(usststttttttbb)", append_ways);
	return bus_reply_send(reply, r);
}

static int append_place(sd_bus_message *m, const struct namespace *ns)
{
	const struct plan_shown_place *p = &ns->plan_place;

	if (!load(&p->looked))
		return 0;
	return sd_bus_message_append(m, "(ubbttt)", ns->id, (int)load(&p->drops),
				     (int)load(&p->promotes), load(&p->nvme_ns), load(&p->host_ns),
				     load(&p->prefill_ns));
}

int bus_on_get_placement(sd_bus_message *call, void *user, sd_bus_error *error)
{
	(void)error;
	return bus_reply_namespaces(call, user, "(ubbttt)", append_place);
}

/* ---- one block ---- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int parse_key(const char *hex, uint32_t group, struct skvc_abi_key *ret)
{
	size_t len = strlen(hex);

	if (len % 2 || len < 2 * SKVC_ABI_KEY_BYTES_MIN || len > 2 * SKVC_ABI_KEY_BYTES)
		return -EINVAL;
	*ret = (struct skvc_abi_key){ .group = group, .len = (uint8_t)(len / 2) };
	for (size_t i = 0; i < len / 2; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		ret->bytes[i] = (uint8_t)(high << 4 | low);
	}
	return 0;
}

static int append_found(sd_bus_message *m, const struct lane_found *f)
{
	static const char *const where[] = {
		[LANE_WHERE_GPU] = "gpu",
		[LANE_WHERE_HOST] = "host",
		[LANE_WHERE_NVME] = "nvme",
		[LANE_WHERE_FETCHING] = "fetching",
	};

	return sd_bus_message_append(m, "(ussbuuuttttt)", f->ns, where[f->where],
				     codec_speculator_name(f->speculator), (int)f->on_nvme,
				     f->position, f->holders, f->children, f->record_bytes,
				     f->pinned_ns, f->restore_ns, f->host_ns, f->prefill_ns);
}

/* The call waits for its answer here; NULL: the daemon ends first, and so does the connection. */
static void found(void *user, const struct lane_question *q)
{
	sd_bus_message *call = user, *reply = NULL;
	int r;

	if (q) {
		r = bus_reply_new(call, &reply);
		if (r >= 0)
			r = sd_bus_message_open_container(reply, 'a', "(ussbuuuttttt)");
		for (uint32_t i = 0; r >= 0 && i < q->count; i++)
			r = append_found(reply, &q->found[i]);
		if (r >= 0)
			r = sd_bus_message_close_container(reply);
		(void)bus_reply_send(reply, r);
	}
	sd_bus_message_unref(call);
}

int bus_on_find_block(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	struct skvc_abi_key key;
	const char *hex;
	uint32_t group;
	int r = bus_may_answer(call);

	if (r >= 0)
		r = sd_bus_message_read(call, "su", &hex, &group);
	if (r < 0)
		return r;
	if (parse_key(hex, group, &key) < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "a key is %u to %u bytes, in hexadecimal",
					 SKVC_ABI_KEY_BYTES_MIN, SKVC_ABI_KEY_BYTES);
	if (control_find(bus->control, &key, found, call) < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
					 "another question is being answered: try again");
	sd_bus_message_ref(call);
	return 1;
}
