/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.c - one sd-event loop for everything that is not the data path.  Control thread.
 *
 * Per connection three sources: its socket, its pidfd, its deadline.  client.c decides what happens on
 * them and never sees the loop; settle() then makes the sources agree with the client's new state.
 * A client is served one packet per turn, so none of them can keep the others waiting.
 */
#include "daemon/control.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <systemd/sd-event.h>

#include "daemon/aside.h"
#include "daemon/client.h"
#include "daemon/log.h"
#include "daemon/shipped.h"
#include "daemon/util/clock.h"

#define CONTROL_UNSAID_MAX 64u	   /* connections that have not said hello yet */
#define CONTROL_UNSAID_UID_MAX 16u /* of these, one user's */
#define CONTROL_ACCEPT_BATCH 16u
#define CONTROL_STOP_NS 5000000000ull
#define CONTROL_FLUSH_NS 1000000ull	     /* the lane's box was full: try again */
#define CONTROL_ACCEPT_PAUSE_NS 100000000ull /* no fd is left: let some be closed first */
#define NS_PER_US 1000ull

struct control {
	struct sd_event *event;	     /* borrowed from main */
	const struct config *config; /* borrowed */
	struct lane *lane;	     /* borrowed */
	struct registry *registry;   /* borrowed */
	struct listener *listener;   /* borrowed */
	struct models *models;	     /* borrowed */
	struct stats stats;	     /* the control thread writes it */
	struct client_host host;
	struct client **clients; /* owned, [clients_max] */
	uint32_t clients_count, clients_max;
	sd_event_source *accept_source, *accept_timer, *mail_source, *flush_source, *stop_source;
	bool stopping;
	control_find_done find_done; /* NULL: nobody waits */
	void *find_user;
	struct lane_question question; /* the lane's until it is answered */
	control_evict_done evict_done; /* NULL: nobody waits */
	void *evict_user;
	control_reload_fn reload;
	void *reload_user;
};

/* ---- clients in the loop ---- */

static sd_event_source *drop(sd_event_source *source)
{
	return sd_event_source_disable_unref(source);
}

static void forget(struct control *control, struct client *c)
{
	assert(control->clients[c->index] == c);
	control->clients[c->index] = control->clients[--control->clients_count];
	control->clients[c->index]->index = c->index;
	control->clients[control->clients_count] = NULL;
	client_free(c);
	if (control->stopping && !control->clients_count)
		(void)sd_event_exit(control->event, 0);
}

static void settle_timer(struct control *control, struct client *c);

/* After anything happened to a client: sources as its state wants them.  It may be freed in here. */
static void settle(struct control *control, struct client *c)
{
	if (c->drop_socket) {
		c->sock_source = drop(c->sock_source);
		c->pidfd_source = drop(c->pidfd_source);
		client_close(c); /* only now: an fd number that epoll still has must stay taken */
	} else {
		/* With no events wanted, a hang-up is still told. */
		(void)sd_event_source_set_io_events(c->sock_source,
						    client_wants_input(c) ? EPOLLIN : 0);
	}
	settle_timer(control, c);
	if (control->host.late_count)
		(void)sd_event_source_set_enabled(control->flush_source, SD_EVENT_ONESHOT);
	if (c->state == CLIENT_OVER) {
		c->timer_source = drop(c->timer_source);
		forget(control, c);
	}
}

static int on_socket(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct client *c = user;

	(void)source;
	(void)fd;
	if (client_wants_input(c) && (events & EPOLLIN))
		client_input(c); /* also reads what was sent before a hang-up */
	else if (events & (EPOLLHUP | EPOLLERR))
		client_gone(c);
	settle(c->loop, c);
	return 0;
}

static int on_pidfd(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct client *c = user;

	(void)source;
	(void)fd;
	(void)events;
	client_gone(c);
	settle(c->loop, c);
	return 0;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *user)
{
	struct client *c = user;

	(void)source;
	(void)usec;
	if (c->deadline_ns && clock_now_ns() >= c->deadline_ns)
		client_deadline(c);
	settle(c->loop, c);
	return 0;
}

static void settle_timer(struct control *control, struct client *c)
{
	uint64_t usec = c->deadline_ns / NS_PER_US + 1;

	if (!c->deadline_ns) {
		(void)sd_event_source_set_enabled(c->timer_source, SD_EVENT_OFF);
		return;
	}
	if (!c->timer_source) {
		if (sd_event_add_time(control->event, &c->timer_source, CLOCK_MONOTONIC, usec,
				      10000, on_deadline, c) < 0)
			c->deadline_ns = 0; /* out of memory: a pause ends at once */
		return;
	}
	(void)sd_event_source_set_time(c->timer_source, usec);
	(void)sd_event_source_set_enabled(c->timer_source, SD_EVENT_ONESHOT);
}

/* ---- new connections ---- */

static bool may_wait(const struct control *control, uid_t uid)
{
	uint32_t all = 0, of_uid = 0;

	for (uint32_t i = 0; i < control->clients_count; i++) {
		const struct client *c = control->clients[i];

		if (c->state != CLIENT_HELLO)
			continue;
		all++;
		of_uid += c->session.uid == uid;
	}
	return all < CONTROL_UNSAID_MAX && of_uid < CONTROL_UNSAID_UID_MAX &&
	       control->clients_count < control->clients_max;
}

static int watch(struct control *control, struct client *c)
{
	int r;

	r = sd_event_add_io(control->event, &c->sock_source, c->sock, EPOLLIN, on_socket, c);
	if (r >= 0 && c->pidfd >= 0) {
		r = sd_event_add_io(control->event, &c->pidfd_source, c->pidfd, EPOLLIN, on_pidfd,
				    c);
		/* Death comes before what the dead still had to say. */
		if (r >= 0)
			r = sd_event_source_set_priority(c->pidfd_source,
							 SD_EVENT_PRIORITY_IMPORTANT);
	}
	return r < 0 ? r : 0;
}

static void refuse(struct control *control, int sock, const struct listener_peer *peer,
		   const char *why)
{
	struct session s = { .pid = peer->pid, .uid = peer->uid };

	stats_reason(&control->stats, SKVC_ABI_REASON_SESSIONS_FULL);
	log_client(LOG_EVENT_SESSION_FAILED, LOG_LEVEL_WARNING, &s, SKVC_ABI_REASON_SESSIONS_FULL,
		   "%s: this one is closed", why);
	aside_close_socket(peer->uid, sock);
	if (peer->pidfd >= 0)
		(void)close(peer->pidfd);
}

static void connected(struct control *control, int sock)
{
	struct listener_peer peer;
	struct client *c;

	if (listener_peer(sock, &peer) < 0) { /* it is dead already */
		aside_close_socket(ASIDE_NOBODY, sock);
		return;
	}
	if (!may_wait(control, peer.uid)) {
		refuse(control, sock, &peer, "too many connections that say nothing");
		return;
	}
	if (aside_is_behind(peer.uid)) {
		refuse(control, sock, &peer, "descriptors of this user take too long to close");
		return;
	}
	if (client_new(&control->host, sock, &peer, &c) < 0)
		return;
	c->loop = control;
	c->index = control->clients_count;
	control->clients[control->clients_count++] = c;
	if (watch(control, c) < 0)
		client_shutdown(c);
	settle(control, c);
}

static int on_accept_again(sd_event_source *source, uint64_t usec, void *user)
{
	struct control *control = user;

	(void)source;
	(void)usec;
	(void)sd_event_source_set_enabled(control->accept_source, SD_EVENT_ON);
	return 0;
}

static int on_accept(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct control *control = user;
	int sock, r;

	(void)source;
	(void)fd;
	(void)events;
	for (unsigned i = 0; i < CONTROL_ACCEPT_BATCH; i++) {
		r = listener_accept(control->listener, &sock);
		if (!r) {
			connected(control, sock);
			continue;
		}
		if (r == -EAGAIN)
			break;
		/* EMFILE and the like: the connection stays readable, so polling on would spin. */
		log_line(LOG_LEVEL_WARNING, "cannot accept a connection: %s; raise LimitNOFILE",
			 strerror(-r));
		(void)sd_event_source_set_enabled(control->accept_source, SD_EVENT_OFF);
		(void)sd_event_source_set_time_relative(control->accept_timer,
							CONTROL_ACCEPT_PAUSE_NS / NS_PER_US);
		(void)sd_event_source_set_enabled(control->accept_timer, SD_EVENT_ONESHOT);
		break;
	}
	return 0;
}

/* ---- the lane's mail ---- */

static void gpu_failed(const struct mail *mail)
{
	log_event(
		LOG_EVENT_GPU_FAILED, LOG_LEVEL_ERR,
		"the GPU has failed: %s; its memory is not served until a restart, host memory is",
		strerror(-mail->res));
}

static void nvme_health(const struct mail *mail)
{
	if (mail->value == 1)
		log_event(LOG_EVENT_NVME_IN, LOG_LEVEL_NOTICE, "NVMe tier is in service");
	else if (mail->value == 3)
		log_event(
			LOG_EVENT_NVME_OUT, LOG_LEVEL_WARNING,
			"a device of the NVMe tier is out of service: too many errors; the others go on, "
			"and it is tried again");
	else
		log_event(LOG_EVENT_NVME_OUT, LOG_LEVEL_WARNING,
			  "NVMe tier is out of service: %s; it is tried again",
			  mail->res ? strerror(-mail->res) : "too many errors");
}

static void profile_new(const struct mail *mail)
{
	const struct namespace *ns = mail->subject;

	log_line(LOG_LEVEL_INFO,
		 "namespace %" PRIu32 " (%s of tenant %s): profile %" PRIu64 ", %.3f bits a "
		 "scalar expected",
		 ns->id, ns->model, ns->tenant->name, mail->value,
		 (double)atomic_load_explicit(&ns->profile_bits_milli, memory_order_relaxed) /
			 1000.0);
}

static void profile_note(const struct mail *mail)
{
	static const char *const text[] = {
		[PROFILE_NOTE_PREVIOUS] =
			"[profile] bytes_max: its profile looks back fewer layers",
		[PROFILE_NOTE_NO_LAYER] =
			"[profile] bytes_max: no profile of it is small enough for layer",
		[PROFILE_NOTE_NO_SAMPLE] =
			"[profile] sample: no room for enough of its blocks to fit layer on",
		[PROFILE_NOTE_NO_BETTER] = "a new profile is no better; the old one stays",
		[PROFILE_NOTE_FAILED] = "no profile could be fitted",
		[PROFILE_NOTE_NO_MODEL] = "nothing could be fitted for its model",
		[PROFILE_NOTE_NO_SLOT] = "too many old profiles are in use; a new one was not kept",
		[PROFILE_NOTE_DRIFT] =
			"blocks are larger than the profile promised; another sample is taken",
	};
	const struct namespace *ns = mail->subject;

	assert(mail->value < sizeof(text) / sizeof(text[0]));
	log_line(mail->value == PROFILE_NOTE_FAILED ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO,
		 "namespace %" PRIu32 " (%s of tenant %s): %s%s%s", ns->id, ns->model,
		 ns->tenant->name, text[mail->value], mail->res < 0 ? ": " : "",
		 mail->res < 0 ? strerror(-mail->res) : "");
}

static void evicted(struct control *control, const struct mail *mail)
{
	struct control_evicted result = { .blocks = mail->value,
					  .bytes = (uint64_t)(uintptr_t)mail->object,
					  .kept = (uint64_t)mail->res };
	control_evict_done done = control->evict_done;

	assert(done);
	control->evict_done = NULL;
	log_event(LOG_EVENT_EVICTED, LOG_LEVEL_NOTICE,
		  "evicted as asked: %" PRIu64 " blocks of %" PRIu64 " bytes; %" PRIu64
		  " are held and stay",
		  result.blocks, result.bytes, result.kept);
	done(control->evict_user, &result);
}

static void found(struct control *control)
{
	control_find_done done = control->find_done;

	assert(done);
	control->find_done = NULL;
	done(control->find_user, &control->question);
}

static void one_mail(struct control *control, const struct mail *mail)
{
	struct session *s = mail->subject;
	struct client *c;

	switch (mail->type) {
	case LANE_PROFILE_NEW:
		profile_new(mail);
		return;
	case LANE_PROFILE_NOTE:
		profile_note(mail);
		return;
	case LANE_NVME_HEALTH:
		nvme_health(mail);
		return;
	case LANE_GPU_HEALTH:
		gpu_failed(mail);
		return;
	case LANE_EVICT:
		evicted(control, mail);
		return;
	case LANE_FIND:
		found(control);
		return;
	default:
		assert(s->slot < control->config->sessions_max);
		c = control->host.by_slot[s->slot];
		assert(c && &c->session == s);
		client_mail(c, mail);
		settle(control, c);
	}
}

static int on_mail(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct control *control = user;
	struct mailbox *outbox = lane_outbox(control->lane);
	struct mail mail;

	(void)source;
	(void)fd;
	(void)events;
	do {
		mailbox_disarm(outbox);
		while (mailbox_recv(outbox, &mail))
			one_mail(control, &mail);
	} while (!mailbox_arm(outbox));
	return 0;
}

static int on_flush(sd_event_source *source, uint64_t usec, void *user)
{
	struct control *control = user;

	(void)usec;
	client_host_flush(&control->host);
	if (control->host.late_count) {
		(void)sd_event_source_set_time_relative(source, CONTROL_FLUSH_NS / NS_PER_US);
		(void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	}
	return 0;
}

/* ---- models ---- */

void control_model_loaded(void *user, const struct model_entry *entry)
{
	struct control *control = user;

	if (entry->state != MODEL_READY) {
		log_event(LOG_EVENT_MODEL_FAILED, LOG_LEVEL_WARNING, "model %s is not loaded: %s",
			  entry->name, entry->err);
		return;
	}
	log_line(LOG_LEVEL_NOTICE, "model %s is loaded from %s", entry->name, entry->folder);
	shipped_offer_model(control->config, control->models, control->registry,
			    mspec_model_digest(entry->model));
}

void control_use_models(struct control *control, struct models *models)
{
	control->models = models;
	control->host.models = models;
}

/* ---- start and stop ---- */

static int add_sources(struct control *control)
{
	struct mailbox *outbox = lane_outbox(control->lane);
	int r;

	r = sd_event_add_io(control->event, &control->mail_source, outbox->fd, EPOLLIN, on_mail,
			    control);
	if (r < 0)
		return r;
	/* Answers free memory and let clients go on: before new work. */
	r = sd_event_source_set_priority(control->mail_source, SD_EVENT_PRIORITY_IMPORTANT - 1);
	if (r < 0)
		return r;
	r = sd_event_add_time_relative(control->event, &control->flush_source, CLOCK_MONOTONIC, 0,
				       1000, on_flush, control);
	if (r < 0)
		return r;
	(void)sd_event_source_set_enabled(control->flush_source, SD_EVENT_OFF);
	r = sd_event_add_time_relative(control->event, &control->accept_timer, CLOCK_MONOTONIC, 0,
				       1000, on_accept_again, control);
	if (r < 0)
		return r;
	(void)sd_event_source_set_enabled(control->accept_timer, SD_EVENT_OFF);
	r = sd_event_add_io(control->event, &control->accept_source, control->listener->fd, EPOLLIN,
			    on_accept, control);
	if (r < 0)
		return r;
	/* The eventfd is written only for a reader that sleeps: say so once before the first poll. */
	return on_mail(NULL, -1, 0, control);
}

int control_new(struct sd_event *event, const struct config *config, struct lane *lane,
		struct registry *registry, struct listener *listener, struct control **ret_control)
{
	struct control *control = calloc(1, sizeof(*control));
	int r;

	if (!control)
		return -ENOMEM;
	control->event = event;
	control->config = config;
	control->lane = lane;
	control->registry = registry;
	control->listener = listener;
	control->clients_max = config->sessions_max + CONTROL_UNSAID_MAX;
	control->clients = calloc(control->clients_max, sizeof(struct client *));
	r = control->clients
		    ? client_host_init(&control->host, config, lane, registry, &control->stats)
		    : -ENOMEM;
	if (!r)
		r = add_sources(control);
	if (r < 0) {
		control_free(control);
		return r;
	}
	*ret_control = control;
	return 0;
}

struct control *control_free(struct control *control)
{
	if (!control)
		return NULL;
	assert(!control->clients_count);
	if (control->evict_done)
		control->evict_done(control->evict_user, NULL);
	if (control->find_done)
		control->find_done(control->find_user, NULL);
	control->accept_source = drop(control->accept_source);
	control->accept_timer = drop(control->accept_timer);
	control->mail_source = drop(control->mail_source);
	control->flush_source = drop(control->flush_source);
	control->stop_source = drop(control->stop_source);
	client_host_deinit(&control->host);
	free(control->clients);
	free(control);
	return NULL;
}

static int on_stop_late(sd_event_source *source, uint64_t usec, void *user)
{
	struct control *control = user;

	(void)source;
	(void)usec;
	log_line(LOG_LEVEL_ERR, "%" PRIu32 " sessions did not drain within 5 s",
		 control->clients_count);
	return sd_event_exit(control->event, -ETIMEDOUT);
}

void control_stop(struct control *control)
{
	if (control->stopping)
		return;
	control->stopping = true;
	control->accept_source = drop(control->accept_source);
	control->accept_timer = drop(control->accept_timer);
	if (!control->clients_count) {
		(void)sd_event_exit(control->event, 0);
		return;
	}
	(void)sd_event_add_time_relative(control->event, &control->stop_source, CLOCK_MONOTONIC,
					 CONTROL_STOP_NS / NS_PER_US, 0, on_stop_late, control);
	/* Backwards: a client that is over at once is replaced by the last, which was seen already. */
	for (uint32_t i = control->clients_count; i-- > 0;) {
		struct client *c = control->clients[i];

		client_shutdown(c);
		settle(control, c);
	}
}

/* ---- to change ---- */

static void post(struct control *control, enum lane_mail type, void *subject, void *object)
{
	client_host_post(&control->host, type, subject, object, 0);
	if (control->host.late_count)
		(void)sd_event_source_set_enabled(control->flush_source, SD_EVENT_ONESHOT);
}

int control_set_quota(struct control *control, const char *tenant, uint64_t quota_bytes)
{
	struct tenant *t = registry_tenant_named(control->registry, tenant);

	if (!t)
		return -ENOENT;
	if (control->host.late_count)
		return -EAGAIN;
	atomic_store_explicit(&t->quota_bytes, quota_bytes, memory_order_relaxed);
	post(control, LANE_TRIM, NULL, NULL);
	log_event(LOG_EVENT_QUOTA, LOG_LEVEL_NOTICE,
		  "quota of tenant %s: %" PRIu64 " bytes, until a reload", t->name, quota_bytes);
	return 0;
}

int control_evict(struct control *control, const char *tenant, uint32_t ns, control_evict_done done,
		  void *user)
{
	const struct registry *registry = control->registry;
	struct tenant *t = tenant[0] ? registry_tenant_named(registry, tenant) : NULL;

	if ((tenant[0] && !t) || (ns != CONTROL_NS_ANY && ns >= registry->namespaces_count))
		return -ENOENT;
	if (control->evict_done || control->stopping)
		return -EBUSY;
	control->evict_done = done;
	control->evict_user = user;
	post(control, LANE_EVICT, t, ns == CONTROL_NS_ANY ? NULL : registry->namespaces[ns]);
	return 0;
}

int control_find(struct control *control, const struct skvc_abi_key *key, control_find_done done,
		 void *user)
{
	if (control->find_done || control->stopping)
		return -EBUSY;
	control->find_done = done;
	control->find_user = user;
	control->question = (struct lane_question){ .key = *key };
	post(control, LANE_FIND, &control->question, NULL);
	return 0;
}

void control_drain(struct control *control, bool on)
{
	if (control->host.draining == on)
		return;
	control->host.draining = on;
	log_event(LOG_EVENT_DRAIN, LOG_LEVEL_NOTICE,
		  on ? "draining as asked: no new session is taken, %" PRIu32 " are here"
		     : "no longer draining; %" PRIu32 " sessions are here",
		  control->host.sessions_count);
}

bool control_draining(const struct control *control)
{
	return control->host.draining;
}

void control_on_reload(struct control *control, control_reload_fn fn, void *user)
{
	control->reload = fn;
	control->reload_user = user;
}

int control_reload(struct control *control, char *ret_text, size_t text_bytes)
{
	if (control->reload)
		return control->reload(control->reload_user, ret_text, text_bytes);
	(void)snprintf(ret_text, text_bytes, "this daemon has no configuration to read again");
	return -ENOTSUP;
}

int control_config_changed(struct control *control)
{
	struct config *copy;

	if (control->host.late_count)
		return -EAGAIN; /* the lane is behind; one letter of ours is enough */
	copy = malloc(sizeof(*copy));
	if (!copy)
		return -ENOMEM;
	memcpy(copy, control->config, sizeof(*copy));
	registry_take_quotas(control->registry);
	post(control, LANE_CONFIG, copy, NULL);
	return 0;
}

/* ---- to look at ---- */

const struct config *control_config(const struct control *control)
{
	return control->config;
}

struct models *control_models(const struct control *control)
{
	return control->models;
}

const struct registry *control_registry(const struct control *control)
{
	return control->registry;
}

const struct session *control_session(const struct control *control, uint32_t slot)
{
	const struct client *c = slot < control->config->sessions_max ? control->host.by_slot[slot]
								      : NULL;

	return c ? &c->session : NULL;
}

uint64_t control_stat(const struct control *control, enum stats_id id)
{
	return stats_get(lane_stats(control->lane), id) + stats_get(&control->stats, id);
}

uint64_t control_reason(const struct control *control, uint16_t reason)
{
	assert(reason < SKVC_ABI_REASON_COUNT);
	return atomic_load_explicit(&lane_stats(control->lane)->reason[reason],
				    memory_order_relaxed) +
	       atomic_load_explicit(&control->stats.reason[reason], memory_order_relaxed);
}

const struct plan_shown_rate *control_plan_rates(const struct control *control)
{
	return lane_plan_rates(control->lane);
}

const struct stats *control_lane_stats(const struct control *control)
{
	return lane_stats(control->lane);
}

const char *control_health(const struct control *control)
{
	if (control->stopping)
		return "stopping";
	if (control->host.draining)
		return "draining";
	return control_stat(control, STAT_NVME_HEALTH) > 1 ? "degraded" : "ok";
}

void control_status(const struct control *control, char *ret_line, size_t line_bytes)
{
	static const char *const nvme[] = { "no NVMe tier", "NVMe in service",
					    "NVMe OUT OF SERVICE", "NVMe PARTLY OUT OF SERVICE" };
	uint64_t pool = control_stat(control, STAT_POOL_BYTES);
	uint64_t raw = control_stat(control, STAT_RAW_BYTES),
		 coded = control_stat(control, STAT_CODED_BYTES);
	uint64_t health = control_stat(control, STAT_NVME_HEALTH);

	(void)snprintf(ret_line, line_bytes,
		       "%" PRIu64 " sessions, %" PRIu64 " blocks, ratio %.2f, pool %.0f %% of "
		       "%" PRIu64 " MiB, %s",
		       control_stat(control, STAT_SESSIONS), control_stat(control, STAT_BLOCKS),
		       coded ? (double)raw / (double)coded : 0.0,
		       pool ? 100.0 * (double)control_stat(control, STAT_POOL_SLAB_BYTES) /
				       (double)pool
			    : 0.0,
		       pool >> 20, nvme[health < 4 ? health : 2]);
}
