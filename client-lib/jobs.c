/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jobs.c - the fixed table of jobs and the lists through it.  Nothing is allocated after skvc_open.
 *
 * 2 * sq_entries jobs: each has at most two completions and the completion ring has 4 * sq_entries
 * slots, so the daemon always finds a free one.  The last job is kept for skvc_abort(), which must work
 * when the table is full.
 */
#include <string.h>

#include "client-lib/client.h"

void client_list_append(struct skvc_session *s, struct client_list *list, struct client_job *job)
{
	uint32_t idx = (uint32_t)(job - s->jobs);

	job->next = CLIENT_NONE;
	job->prev = list->last;
	if (list->last != CLIENT_NONE)
		s->jobs[list->last].next = idx;
	else
		list->first = idx;
	list->last = idx;
}

void client_list_remove(struct skvc_session *s, struct client_list *list, struct client_job *job)
{
	if (job->prev != CLIENT_NONE)
		s->jobs[job->prev].next = job->next;
	else
		list->first = job->next;
	if (job->next != CLIENT_NONE)
		s->jobs[job->next].prev = job->prev;
	else
		list->last = job->prev;
	job->next = CLIENT_NONE;
	job->prev = CLIENT_NONE;
}

void client_jobs_init(struct skvc_session *s)
{
	const struct client_list empty = { CLIENT_NONE, CLIENT_NONE };

	s->jobs_free = empty;
	s->jobs_ready = empty;
	s->jobs_progress = empty;
	s->jobs_used = 0;
	s->jobs_internal = 0;
	for (uint32_t i = 0; i < s->jobs_max; i++) {
		memset(&s->jobs[i], 0, sizeof(s->jobs[i]));
		s->jobs[i].generation = 1;
		client_list_append(s, &s->jobs_free, &s->jobs[i]);
	}
}

struct client_job *client_job_new(struct skvc_session *s, uint8_t op, bool internal)
{
	uint32_t kept = op == SKVC_ABI_OP_ABORT ? 0 : 1;
	struct client_job *job;
	uint32_t generation;

	if (s->jobs_used + kept >= s->jobs_max)
		return NULL;
	job = &s->jobs[s->jobs_free.first];
	client_list_remove(s, &s->jobs_free, job);
	generation = job->generation;
	memset(job, 0, sizeof(*job));
	job->generation = generation;
	job->state = CLIENT_JOB_LIVE;
	job->op = op;
	job->internal = internal;
	job->next = CLIENT_NONE;
	job->prev = CLIENT_NONE;
	s->jobs_used++;
	s->jobs_internal += internal;
	return job;
}

/* The handle dies with this; the slot goes to the end of the free list, so that it stays dead long. */
void client_job_free(struct skvc_session *s, struct client_job *job)
{
	job->state = CLIENT_JOB_FREE;
	job->generation++;
	if (!job->generation)
		job->generation = 1;
	s->jobs_used--;
	s->jobs_internal -= job->internal;
	client_list_append(s, &s->jobs_free, job);
}

uint64_t client_job_handle(const struct skvc_session *s, const struct client_job *job)
{
	return skvc_abi_handle((uint32_t)(job - s->jobs), job->generation);
}

struct client_job *client_job_find(const struct skvc_session *s, uint64_t handle)
{
	uint32_t idx = skvc_abi_handle_index(handle);
	struct client_job *job;

	if (idx >= s->jobs_max)
		return NULL;
	job = &s->jobs[idx];
	if (job->state == CLIENT_JOB_FREE || job->generation != skvc_abi_handle_generation(handle))
		return NULL;
	return job;
}
