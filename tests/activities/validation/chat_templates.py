"""Chat templates: some in the style of known models, which pass, and some that a publisher could attack with."""

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- set date_string = date_string if date_string is defined else strftime_now('%d %b %Y') %}
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content.strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' ~ 'Today: ' ~ date_string ~ '\\n\\n' ~ system_message }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message.content | trim ~ '<|eot_id|>' }}
    {%- else %}
        {%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

TOOLS = """\
{%- macro describe(schema, level=0) -%}
    {%- if schema.type == 'object' -%}
        {
        {%- for name, inner in schema.properties.items() -%}
            {{ name }}: {{ describe(inner, level + 1) }}{{ ', ' if not loop.last }}
        {%- endfor -%}
        }
    {%- else -%}
        {{ schema.type }}{{ '[' ~ (schema.enum | join(' | ')) ~ ']' if schema.enum }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user=-1, calls=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<tools>\\n' }}
    {%- for tool in tools %}
        {{- tool.function.name ~ '(' ~ describe(tool.function.parameters) ~ ')\\n' }}
        {{- tool | tojson ~ '\\n' }}
    {%- endfor %}
    {{- '</tools>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- continue %}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<assistant>' ~ content }}
        {%- for call in message.tool_calls or [] %}
            {%- set ns.calls = ns.calls + 1 %}
            {{- '<tool_call>' ~ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
        {%- endfor %}
        {{- '</assistant>' }}
        {%- endgeneration %}
    {%- elif message.role in ['user', 'system'] %}
        {{- '<' ~ message.role ~ '>' ~ message.content }}
    {%- else %}
        {{- raise_exception('unknown role: ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
"""

ALTERNATING = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + message['role'] + '\\n' + message['content'] + '<end_of_turn>\\n' }}
{%- endfor %}
"""

KNOWN = {"chatml": CHATML, "headers": HEADERS, "tools": TOOLS, "alternating": ALTERNATING}

ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
"""No output, and no operation that takes long: processor time alone."""
ALL_TRIPLES = (
    "{% for a in messages %}{% for b in messages %}{% for c in messages %}{% set x = a.role ~ b.role ~ c.role %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
"""Takes a minute of processor time for 256 turns."""
DOUBLED = (
    "{% set ns = namespace(s='ab') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s|length }}"
)
