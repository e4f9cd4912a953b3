#compdef skvcctl
# SPDX-License-Identifier: Apache-2.0
# zsh completion of skvcctl; installed as _skvcctl

_skvcctl_tenants() {
	local -a tenants
	tenants=(${(f)"$(_call_program tenants ${words[1]} ${(kv)opt_args[(I)-b|--bus]} tenants 2>/dev/null |
		sed -n 's/^  \([^ ]*\) .*/\1/p')"})
	_describe -t tenants tenant tenants
}

_skvcctl_words() {
	case $words[1] in
	model)
		case $CURRENT in
		2) _values 'what to do' 'add[load one, now and at each start]' 'remove[no more]' ;;
		3) _message 'name of the model' ;;
		4) _files -/ ;;
		esac
		;;
	quota)
		case $CURRENT in
		2) _skvcctl_tenants ;;
		3) _values 'size, as 20G' none ;;
		esac
		;;
	evict)
		case $CURRENT in
		2) _values 'whose blocks' tenant namespace all ;;
		3) [[ $words[2] == tenant ]] && _skvcctl_tenants ;;
		esac
		;;
	drain)
		((CURRENT == 2)) && _values 'or' 'wait[until nobody is connected]' 'off[take new sessions again]'
		;;
	esac
}

_skvcctl() {
	local curcontext=$curcontext state line
	local -A opt_args
	local -a commands
	commands=(
		'stats:one screen of what is held, hit, stored and loaded'
		'top:the same, live'
		'namespaces:what is cached'
		'profiles:what namespaces are compressed with'
		'models:models that blocks can be coded with'
		'sessions:who is connected'
		'tenants:compressed bytes charged, and quotas'
		'ping:does it answer'
		'version:of skvcctl and of the daemon'
		'doctor:is this machine fit for skvcd'
		'explain:what a reason or a counter means'
		'plan:what was measured, and how blocks are coded for it'
		'quota:what a tenant may take'
		'evict:drop blocks that nobody uses'
		'drain:take no new sessions'
		'reload:read the configuration again'
		'model:add or remove a model'
	)
	_arguments -C \
		'(-b --bus)'{-b,--bus}'[bus socket of the daemon]:socket:_files' \
		'--system[ask through the system bus]' \
		'(-j --json)'{-j,--json}'[for programs]' \
		'--prometheus[stats as Prometheus reads them]' \
		'--plan[explain, what was measured]' \
		'(-w --watch)'{-w,--watch}'[print again]' \
		'(-c --config)'{-c,--config}'[doctor\: configuration of the daemon]:file:_files' \
		'(- *)'{-h,--help}'[help]' \
		'(- *)'{-V,--version}'[version]' \
		'1:command:->command' \
		'*::words:_skvcctl_words'
	[[ $state == command ]] && _describe -t commands command commands
}

_skvcctl "$@"
