"""Chat templates of the kinds that models ship with, each in a few lines, with the habits that matter here."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Content is trimmed; a tool's answer is written as JSON.
LLAMA3 = """{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}
    {%- for c in m.tool_calls %}{{- '{"name": "' + c.function.name + '", "parameters": ' }}
        {{- c.function.arguments | tojson }}{{- '}' }}{% endfor %}
{%- elif m.role in ('tool', 'ipython') %}
    {{- m.content | tojson }}
{%- else %}
    {{- m.content | trim }}
{%- endif %}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
# The system turn goes into the first user's; the assistant is called model.
GEMMA = """{%- if messages[0].role == 'system' -%}
    {%- set first = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') -}}
    {{- m.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""
# Reasoning of the answer is set again between marks, that of earlier turns is dropped.
QWEN3 = """{%- set last = namespace(user=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- set text = m.content or '' %}
    {%- if m.role == 'assistant' %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if '</think>' in text %}
            {%- set thought = text.split('</think>')[0].split('<think>')[-1] %}
            {%- set text = text.split('</think>')[-1] %}
        {%- endif %}
        {%- if loop.index0 > last.user %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- text.lstrip('\\n') }}
        {%- for c in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' }}{{- c.function | tojson }}{{- '\\n</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- text }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"""
# System turns come first wherever they stand; what is before </think> is cut from every answer, the scored one too.
DEEPSEEK = """{%- set found = namespace(system='') %}
{%- for m in messages %}{%- if m.role == 'system' %}
    {%- set found.system = found.system + m.content %}{%- endif %}{%- endfor %}{{ found.system }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<|User|>' + m.content }}{%- endif %}
    {%- if m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""
# Today's date in the system turn, as in Llama 3.2.
DATED = (
    """{% if not date_string is defined %}
    {% if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{% endif %}
Today: {{ date_string }}
"""
    + CHATML
)
# The same inside a macro, as in gpt-oss.
DATED_IN_A_MACRO = (
    "{%- macro opening() -%}\n    {{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\\n' }}\n{%- endmacro -%}\n"
    "{{- opening() }}" + CHATML
)
NEEDS_TOOLS = "{% if tools | length > 0 %}{{ tools | tojson }}{% endif %}" + CHATML
NEEDS_A_SYSTEM_TURN = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
NEEDS_REASONING = CHATML.replace("{{ m.content }}", "{{ m.reasoning_content.strip() if m.role == 'assistant' }}")
NEEDS_MORE = "{{ topic.strip() }}" + CHATML
# What the assistant generates is marked, as templates for training do; the line's end after it is not.
CHATML_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Reasoning is kept in the last answer alone, and what is generated is marked, so that the whole can be learnt.
QWEN3_MARKED = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}{%- if m.role == 'assistant' -%}"
    "{%- generation -%}{%- if loop.last -%}{{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' -}}"
    "{%- endif -%}{{- m.content + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"
    "{%- else -%}{{- m.content + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# A header for each role, eos after each turn.
ZEPHYR = """{% for m in messages %}
{% if m.role == 'assistant' %}
{{ '<|assistant|>\\n'  + m.content + eos_token }}
{% else %}
{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
