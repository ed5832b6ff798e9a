# Deletes what is older than LANGFUSE_INIT_PROJECT_RETENTION days; changes no table. Run twice, it does nothing more.
# LANGFUSE_INIT_PROJECT_RETENTION일이 지난 데이터를 지웁니다. 테이블 구조는 바꾸지 않고, 다시 실행해도 안전합니다.
set -eu
days=$LANGFUSE_INIT_PROJECT_RETENTION
case $days in
  '' | *[!0-9]*)
    echo "LANGFUSE_INIT_PROJECT_RETENTION is '$days', not a number of days: nothing was deleted" >&2
    exit 1
    ;;
esac
if [ "$days" -lt 3 ]; then
  echo "LANGFUSE_INIT_PROJECT_RETENTION is $days, and at least 3 are asked for: nothing was deleted" >&2
  exit 1
fi

query() {
  clickhouse-client --host langfuse-clickhouse --user "$CLICKHOUSE_USER" --password "$CLICKHOUSE_PASSWORD" --query "$1"
}

for each in events_full:start_time events_core:start_time scores:timestamp; do
  table=${each%:*}
  column=${each#*:}
  if [ "$(query "EXISTS TABLE default.$table")" = 1 ]; then
    query "ALTER TABLE default.$table DELETE WHERE $column < now() - INTERVAL $days DAY"
    echo "default.$table: what is older than $days days is being deleted"
  else
    echo "default.$table: there is no such table"
  fi
done
