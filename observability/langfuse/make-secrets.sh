#!/bin/sh
# Makes the random secrets of Langfuse and gives its keys to the namespaces that run pipelines.
# Langfuse의 비밀값을 무작위로 만들고, 파이프라인 네임스페이스에 API 키를 넣습니다.
#
# Writes no file. What exists is never overwritten: run it again for one more namespace, or after a failure.
# 파일을 만들지 않고, 이미 있는 것은 덮어쓰지 않습니다. 네임스페이스를 더하거나 실패했을 때 다시 실행하면 됩니다.
set -eu
umask 077

usage() {
  cat <<'EOF'
Usage: sh make-secrets.sh [options] PIPELINE_NAMESPACE...

Makes in the namespace of Langfuse the Secrets langfuse-app, langfuse-postgres, langfuse-clickhouse, langfuse-valkey and
langfuse-s3, and in each PIPELINE_NAMESPACE the Secret langfuse-credentials (LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY,
LANGFUSE_BASE_URL). What exists is left as it is.

  --namespace NAME   where Langfuse runs (default: langfuse)
  --base-url URL     where pipelines find Langfuse (default: http://langfuse-web.NAME.svc.cluster.local:3000)
  --context NAME     context of the kubeconfig (default: the current one)
  --dry-run          ask no cluster, print all Secrets as YAML; every time with new values, so never apply it twice
  -h, --help         this text
EOF
}

die() {
  echo "make-secrets.sh: $1" >&2
  exit "${2:-1}"
}

namespace=langfuse
base_url=
context=
dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    --namespace | --base-url | --context)
      [ $# -ge 2 ] || die "$1 takes a value" 2
      case $1 in
        --namespace) namespace=$2 ;;
        --base-url) base_url=$2 ;;
        --context) context=$2 ;;
      esac
      shift 2
      ;;
    --dry-run)
      dry_run=yes
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    -*)
      usage >&2
      die "$1 is unknown" 2
      ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || {
  usage >&2
  die "name the namespace that runs the pipelines" 2
}
for each in "$namespace" "$@"; do
  case $each in
    '' | -* | *- | *[!a-z0-9-]*) die "$each cannot be the name of a namespace" 2 ;;
  esac
done
base_url=${base_url:-http://langfuse-web.$namespace.svc.cluster.local:3000}
case $base_url in
  *[[:space:]\"\'\\]*) die "--base-url holds a space, a quote or a backslash" 2 ;;
  http://?* | https://?*) base_url=${base_url%/} ;;
  *) die "--base-url begins with http:// or https://, found $base_url" 2 ;;
esac

# As many random bytes as asked for, as lower-case hexadecimal digits: safe in URLs, and for ClickHouse.
# 요청한 바이트 수만큼의 난수를 16진수로 만듭니다. URL과 ClickHouse에서 안전하게 쓸 수 있는 문자입니다.
random_hex() {
  if command -v openssl >/dev/null 2>&1; then
    made=$(openssl rand -hex "$1")
  else
    made=$(od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n')
  fi
  [ "${#made}" -eq $(($1 * 2)) ] || die "no random numbers: neither openssl nor /dev/urandom gave $1 bytes"
  printf '%s' "$made"
}

random_uuid() {
  digits=$(random_hex 16)
  printf '%s' "$digits" | sed 's/^\(.\{8\}\)\(.\{4\}\)\(.\{4\}\)\(.\{4\}\)/\1-\2-\3-\4-/'
}

ask() {
  kubectl ${context:+--context "$context"} "$@"
}

# Whether the Secret is there. An unreachable cluster is an error and not a "no".
# Secret이 있는지 확인합니다. 클러스터에 연결되지 않으면 "없음"이 아니라 오류로 끝냅니다.
exists() {
  [ -z "$dry_run" ] || return 1
  found=$(ask -n "$1" get secret "$2" --ignore-not-found -o name) || die "the cluster does not answer: see kubectl's words above"
  [ -n "$found" ]
}

value_of() {
  ask -n "$1" get secret "$2" -o "go-template={{index .data \"$3\" | base64decode}}"
}

# Namespace and name; then "KEY value" lines on the standard input. kubectl create refuses what exists.
# 네임스페이스와 이름을 받고, 표준 입력으로 "KEY value" 줄을 받습니다. 이미 있으면 kubectl create가 거부합니다.
make() {
  manifest=$(
    printf '%s\n' 'apiVersion: v1' 'kind: Secret' 'metadata:' "  name: $2" "  namespace: $1"
    printf '%s\n' '  labels:' '    app.kubernetes.io/part-of: langfuse' 'type: Opaque' 'stringData:'
    while read -r key value; do
      [ -n "$value" ] || die "$key of Secret $2 is empty"
      printf "  %s: '%s'\n" "$key" "$value"
    done
  ) || exit 1
  if [ -n "$dry_run" ]; then
    printf '%s\n' '---' "$manifest"
  else
    printf '%s\n' "$manifest" | ask create -f - >/dev/null || die "Secret $2 in $1 could not be made"
    echo "Secret $2 in $1: made"
  fi
}

# A new password for a store that has data would lock everybody out.
# 데이터가 이미 있는 저장소에 새 비밀번호를 만들면 아무도 접속할 수 없게 됩니다.
refuse_if_data_is_there() {
  [ -z "$dry_run" ] || return 0
  claims=$(ask -n "$namespace" get pvc -l app.kubernetes.io/part-of=langfuse -o name) || die "the cluster does not answer"
  [ -z "$claims" ] || die "Secret $1 in $namespace is gone, but its data are there: restore it from your backup, or delete \
the claims of $namespace to begin anew"
}

wanted() {
  if exists "$namespace" "$1"; then
    echo "Secret $1 in $namespace: there, left as it is" >&2
    return 1
  fi
  refuse_if_data_is_there "$1"
}

random_hex 1 >/dev/null
if [ -z "$dry_run" ]; then
  command -v kubectl >/dev/null 2>&1 || die "kubectl is not installed"
  for each in "$@"; do
    ask get namespace "$each" -o name >/dev/null || die "the namespace $each is not there, or the cluster does not answer"
  done
  if [ -z "$(ask get namespace "$namespace" --ignore-not-found -o name)" ]; then
    if [ "$namespace" = langfuse ]; then
      ask apply -f "$(dirname "$0")/namespace.yaml" >/dev/null
    else
      ask create namespace "$namespace" >/dev/null
    fi
    echo "Namespace $namespace: made"
  fi
fi

if wanted langfuse-postgres; then
  password=$(random_hex 24)
  make "$namespace" langfuse-postgres <<EOF
POSTGRES_PASSWORD $password
EOF
fi
if wanted langfuse-clickhouse; then
  password=$(random_hex 24)
  make "$namespace" langfuse-clickhouse <<EOF
CLICKHOUSE_PASSWORD $password
EOF
fi
if wanted langfuse-valkey; then
  password=$(random_hex 24)
  make "$namespace" langfuse-valkey <<EOF
REDIS_AUTH $password
EOF
fi
if wanted langfuse-s3; then
  id=$(random_hex 10)
  key=$(random_hex 24)
  make "$namespace" langfuse-s3 <<EOF
S3_ACCESS_KEY_ID $id
S3_SECRET_ACCESS_KEY $key
s3.json {"identities": [{"name": "langfuse", "credentials": [{"accessKey": "$id", "secretKey": "$key"}], "actions": \
["Admin", "Read", "Write", "List", "Tagging"]}]}
EOF
fi
if wanted langfuse-app; then
  public_key=pk-lf-$(random_uuid)
  secret_key=sk-lf-$(random_uuid)
  encryption_key=$(random_hex 32)
  salt=$(random_hex 32)
  nextauth_secret=$(random_hex 32)
  password=Lf-$(random_hex 12)
  make "$namespace" langfuse-app <<EOF
ENCRYPTION_KEY $encryption_key
SALT $salt
NEXTAUTH_SECRET $nextauth_secret
LANGFUSE_INIT_PROJECT_PUBLIC_KEY $public_key
LANGFUSE_INIT_PROJECT_SECRET_KEY $secret_key
LANGFUSE_INIT_USER_PASSWORD $password
EOF
else
  public_key=$(value_of "$namespace" langfuse-app LANGFUSE_INIT_PROJECT_PUBLIC_KEY)
  secret_key=$(value_of "$namespace" langfuse-app LANGFUSE_INIT_PROJECT_SECRET_KEY)
fi
if [ -z "$public_key" ] || [ -z "$secret_key" ]; then
  die "Secret langfuse-app in $namespace holds no keys of the project"
fi

for each in "$@"; do
  if exists "$each" langfuse-credentials; then
    if [ "$(value_of "$each" langfuse-credentials LANGFUSE_PUBLIC_KEY)" = "$public_key" ]; then
      echo "Secret langfuse-credentials in $each: there, left as it is" >&2
    else
      echo "Secret langfuse-credentials in $each: there with other keys than this Langfuse's, left as it is" >&2
    fi
    continue
  fi
  make "$each" langfuse-credentials <<EOF
LANGFUSE_PUBLIC_KEY $public_key
LANGFUSE_SECRET_KEY $secret_key
LANGFUSE_BASE_URL $base_url
EOF
done
