/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault_device.c - a device that fails on purpose: it hands tasks to an inner device and spoils some of
 * them.  For tests and for `skvcd --fault`; costs nothing when it is not there.
 *
 * Spec: rules separated by commas, each op:fault[:every=N]
 *   op     encode, decode, copy, fit
 *   fault  eio, enomem      the task completes with that error
 *          corrupt          encode, copy: one bit of the output is flipped; decode: of the input
 *          delay_ms=N       the task completes N ms late
 *          stall_ms=N       from its completion on, nothing completes for N ms
 *   every  each N-th task of that op, from the N-th; 1 when it is missing
 *
 * Runs on the lane.  While something is held back arm() says "do not sleep", since no one else would
 * wake the lane when its time has come.
 */
#include "gpu/device.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RULES_MAX 16u
#define DELAY_MS_MAX 600000u
#define EVERY_MAX 1000000000u

enum fault_kind { FAULT_EIO, FAULT_ENOMEM, FAULT_CORRUPT, FAULT_DELAY, FAULT_STALL, FAULT_COUNT };

struct rule {
	enum device_op op;
	enum fault_kind kind;
	uint32_t ms;
	uint32_t every;
	uint32_t seen;
};

struct slot {			  /* a task under way */
	struct device_task *task; /* NULL: free */
	uint32_t faults;	  /* bits of enum fault_kind */
	uint32_t delay_ms;
	uint32_t stall_ms;
	bool done; /* the inner device is finished with it */
	uint64_t release_ns;
	void *copy;	/* owned; the spoilt input */
	const void *in; /* the task's own input, put back */
};

struct fault_device {
	struct device base;
	struct device *inner; /* owned */
	unsigned rules_count;
	struct rule rules[RULES_MAX];
	uint64_t stall_until_ns;
	struct device_task **polled; /* owned; tasks_max */
	struct slot *slots;	     /* owned; tasks_max */
};

static const char *const op_names[DEVICE_OP_COUNT] = { "encode",  "decode", "copy",
						       "copy_in", "move",   "fit" };

static uint64_t now_ns(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static struct fault_device *fault_device_of(struct device *d)
{
	return (struct fault_device *)d;
}

static struct slot *slot_of(struct fault_device *f, const struct device_task *task)
{
	for (unsigned i = 0; i < f->base.tasks_max; i++)
		if (f->slots[i].task == task)
			return &f->slots[i];
	return NULL;
}

static void flip_bit(void *buf, uint64_t bytes)
{
	if (bytes > 0)
		((uint8_t *)buf)[bytes / 2u] ^= 0x10;
}

/* What is to go wrong with this task; counts it. */
static void slot_plan(struct fault_device *f, struct slot *s)
{
	for (unsigned i = 0; i < f->rules_count; i++) {
		struct rule *r = &f->rules[i];

		if (r->op != s->task->op || ++r->seen % r->every != 0)
			continue;
		s->faults |= 1u << r->kind;
		if (r->kind == FAULT_DELAY)
			s->delay_ms = r->ms;
		if (r->kind == FAULT_STALL)
			s->stall_ms = r->ms;
	}
}

static int slot_spoil_input(struct slot *s)
{
	struct device_task *t = s->task;

	if (t->op != DEVICE_DECODE || !(s->faults & 1u << FAULT_CORRUPT) || t->in_bytes == 0)
		return 0;
	s->copy = malloc(t->in_bytes);
	if (!s->copy)
		return -ENOMEM;
	memcpy(s->copy, t->in, t->in_bytes);
	flip_bit(s->copy, t->in_bytes);
	s->in = t->in;
	t->in = s->copy;
	return 0;
}

static void slot_restore_input(struct slot *s)
{
	if (s->copy) {
		s->task->in = s->in;
		free(s->copy);
		s->copy = NULL;
	}
}

static int fault_device_start(struct device *dev, struct device_task *task)
{
	struct fault_device *f = fault_device_of(dev);
	struct slot *s = slot_of(f, NULL);
	int r;

	if (!s)
		return -EAGAIN;
	*s = (struct slot){ .task = task };
	slot_plan(f, s);
	r = slot_spoil_input(s);
	if (r == 0)
		r = f->inner->ops->start(f->inner, task);
	if (r < 0) {
		slot_restore_input(s);
		s->task = NULL;
	}
	return r;
}

/* The inner device has finished: spoil the result, set the time it may be seen. */
static void slot_finish(struct fault_device *f, struct slot *s)
{
	struct device_task *t = s->task;
	uint64_t now = now_ns();

	slot_restore_input(s);
	if (s->faults & 1u << FAULT_CORRUPT && t->res == 0) {
		if (t->op == DEVICE_ENCODE)
			flip_bit(t->out, t->info.encoded_bytes);
		if (t->op == DEVICE_COPY_OUT)
			flip_bit(t->out, t->region->geom->raw_bytes);
	}
	if (s->faults & (1u << FAULT_EIO | 1u << FAULT_ENOMEM)) {
		t->ret_profile = codec_profile_free(t->ret_profile);
		t->res = s->faults & 1u << FAULT_EIO ? -EIO : -ENOMEM;
	}
	s->done = true;
	s->release_ns = now + s->delay_ms * 1000000ull;
	if (s->stall_ms > 0 && f->stall_until_ns < now + s->stall_ms * 1000000ull)
		f->stall_until_ns = now + s->stall_ms * 1000000ull;
}

static unsigned fault_device_poll(struct device *dev, struct device_task **ret_done, unsigned max)
{
	struct fault_device *f = fault_device_of(dev);
	unsigned n = f->inner->ops->poll(f->inner, f->polled, dev->tasks_max), done = 0;
	uint64_t now;

	for (unsigned i = 0; i < n; i++) {
		struct slot *s = slot_of(f, f->polled[i]);

		assert(s && !s->done);
		slot_finish(f, s);
	}
	now = now_ns();
	if (now < f->stall_until_ns)
		return 0;
	for (unsigned i = 0; i < dev->tasks_max && done < max; i++) {
		struct slot *s = &f->slots[i];

		if (s->task && s->done && now >= s->release_ns) {
			ret_done[done++] = s->task;
			s->task = NULL;
		}
	}
	return done;
}

static int fault_device_arm(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);

	for (unsigned i = 0; i < dev->tasks_max; i++)
		if (f->slots[i].task && f->slots[i].done)
			return 0;
	return f->inner->ops->arm(f->inner);
}

static void fault_device_disarm(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);

	f->inner->ops->disarm(f->inner);
}

static struct device *fault_device_free(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);

	if (f->inner)
		f->inner->ops->free(f->inner);
	for (unsigned i = 0; f->slots && i < dev->tasks_max; i++)
		if (f->slots[i].task)
			slot_restore_input(&f->slots[i]);
	free(f->polled);
	free(f->slots);
	free(f);
	return NULL;
}

static const struct device_ops fault_device_ops = {
	.start = fault_device_start,
	.poll = fault_device_poll,
	.arm = fault_device_arm,
	.disarm = fault_device_disarm,
	.free = fault_device_free,
	.name = "fault",
};

static int number_parse(const char *text, uint32_t max, uint32_t *ret_number)
{
	unsigned long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno != 0 || *end != '\0' || v == 0 || v > max)
		return -EINVAL;
	*ret_number = (uint32_t)v;
	return 0;
}

static int fault_parse(const char *text, struct rule *r)
{
	if (strcmp(text, "eio") == 0)
		r->kind = FAULT_EIO;
	else if (strcmp(text, "enomem") == 0)
		r->kind = FAULT_ENOMEM;
	else if (strcmp(text, "corrupt") == 0)
		r->kind = FAULT_CORRUPT;
	else if (strncmp(text, "delay_ms=", 9) == 0)
		r->kind = FAULT_DELAY;
	else if (strncmp(text, "stall_ms=", 9) == 0)
		r->kind = FAULT_STALL;
	else
		return -EINVAL;
	if (r->kind == FAULT_DELAY || r->kind == FAULT_STALL)
		return number_parse(text + 9, DELAY_MS_MAX, &r->ms);
	return r->kind == FAULT_CORRUPT && r->op == DEVICE_FIT ? -EINVAL : 0;
}

static int rule_parse(char *text, struct rule *ret_rule)
{
	struct rule r = { .op = DEVICE_OP_COUNT, .every = 1 };
	char *save = NULL, *op = strtok_r(text, ":", &save), *fault, *every;

	fault = op ? strtok_r(NULL, ":", &save) : NULL;
	every = fault ? strtok_r(NULL, ":", &save) : NULL;
	if (!fault || (every && strtok_r(NULL, ":", &save)))
		return -EINVAL;
	for (unsigned i = 0; i < DEVICE_OP_COUNT; i++)
		if (strcmp(op, op_names[i]) == 0)
			r.op = (enum device_op)i;
	if (r.op == DEVICE_OP_COUNT || fault_parse(fault, &r) < 0)
		return -EINVAL;
	if (every &&
	    (strncmp(every, "every=", 6) != 0 || number_parse(every + 6, EVERY_MAX, &r.every) < 0))
		return -EINVAL;
	*ret_rule = r;
	return 0;
}

static int rules_parse(struct fault_device *f, const char *spec)
{
	char *text = strdup(spec), *save = NULL;
	int r = text ? 0 : -ENOMEM;

	for (char *at = text ? strtok_r(text, ",", &save) : NULL; at && r == 0;
	     at = strtok_r(NULL, ",", &save)) {
		if (f->rules_count == RULES_MAX)
			r = -EINVAL;
		else
			r = rule_parse(at, &f->rules[f->rules_count++]);
	}
	if (r == 0 && f->rules_count == 0)
		r = -EINVAL;
	free(text);
	return r;
}

int fault_device_new(struct device *inner, const char *spec, struct device **ret_device)
{
	struct fault_device *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->base = (struct device){ .ops = &fault_device_ops, .tasks_max = inner->tasks_max };
	f->polled = calloc(inner->tasks_max, sizeof(struct device_task *));
	f->slots = calloc(inner->tasks_max, sizeof(*f->slots));
	r = f->polled && f->slots ? rules_parse(f, spec) : -ENOMEM;
	if (r < 0) {
		fault_device_free(&f->base); /* without inner: it stays the caller's */
		return r;
	}
	f->inner = inner;
	*ret_device = &f->base;
	return 0;
}
