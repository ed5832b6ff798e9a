"""Who may do what: bearer tokens, rules as in a Role, and the questions about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.servers.kubernetes.kinds import Kind, Obj
from tests.servers.kubernetes.statuses import Refusal, forbidden, refusal

#: A rule: apiGroups, resources, verbs, and optionally resourceNames and namespaces (absent: everywhere).
Rule = dict[str, list[str]]

EVERYTHING: Rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}


@dataclass(frozen=True, kw_only=True)
class Account:
    """Somebody known to the server."""

    user: str = "kubernetes-admin"
    rules: tuple[Rule, ...] = (EVERYTHING,)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What somebody wants to do."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def target(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Access:
    """The server's authentication and authorisation. With no account known, everybody may do everything."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._withdrawn: set[str] = set()

    def grant(self, token: str, user: str, rules: Sequence[Rule]) -> None:
        self._accounts[token] = Account(user=user, rules=tuple(rules))

    def rotate(self, old: str, new: str) -> None:
        """`new` from now on, with the rights of `old`, which is refused."""
        self._accounts[new] = self._accounts.pop(old)

    def withdraw(self, token: str) -> None:
        self._accounts.pop(token, None)
        self._withdrawn.add(token)

    def account(self, authorization: str) -> Account:
        """Raises:
        Refusal: 401.
        """
        if not self._accounts and not self._withdrawn:
            return Account()
        found = self._accounts.get(authorization.removeprefix("Bearer ").strip())
        if found is None:
            raise refusal(401)
        return found


def allowed(account: Account, attempt: Attempt) -> bool:
    return any(_fits(rule, attempt) for rule in account.rules)


def _fits(rule: Rule, attempt: Attempt) -> bool:
    def has(key: str, value: str) -> bool:
        return bool({"*", value} & set(rule.get(key, [])))

    named = "resourceNames" not in rule or attempt.name in rule["resourceNames"]
    placed = "namespaces" not in rule or attempt.namespace in rule["namespaces"]
    resource = has("resources", attempt.target) or f"*/{attempt.subresource}" in rule.get("resources", [])
    return has("apiGroups", attempt.group) and resource and has("verbs", attempt.verb) and named and placed


def refuse(account: Account, kind: Kind, attempt: Attempt) -> Refusal:
    """The 403 for an attempt, worded as the real one."""
    where = f'in the namespace "{attempt.namespace}"' if attempt.namespace else "at the cluster scope"
    what = f'resource "{attempt.target}" in API group "{attempt.group}"'
    why = f'User "{account.user}" cannot {attempt.verb} {what} {where}'
    return forbidden(kind, attempt.name, why)


def review(account: Account, body: Obj) -> Obj:
    """The answer to a SelfSubjectAccessReview."""
    asked = (body.get("spec") or {}).get("resourceAttributes") or {}
    attempt = Attempt(
        verb=asked.get("verb", ""),
        group=asked.get("group", ""),
        resource=asked.get("resource", ""),
        subresource=asked.get("subresource", ""),
        namespace=asked.get("namespace", ""),
        name=asked.get("name", ""),
    )
    yes = allowed(account, attempt)
    status = {"allowed": yes} | ({"reason": "RBAC: allowed by the stand-in's rules"} if yes else {})
    head = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {}}
    return head | {"spec": body.get("spec") or {}, "status": status}
